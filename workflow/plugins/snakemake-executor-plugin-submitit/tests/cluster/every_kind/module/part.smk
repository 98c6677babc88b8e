rule first:
    output:
        "first.txt",
    params:
        word=config["word"],
    shell:
        "echo {params.word} > {output}"


rule second:
    input:
        "first.txt",
    output:
        "second.txt",
    params:
        word="unchanged",
    shell:
        "cat {input} > {output}; echo {params.word} >> {output}"
