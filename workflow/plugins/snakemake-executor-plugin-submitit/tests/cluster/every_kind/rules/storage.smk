"""Files in a storage, which jobs fetch and bring, and a script in R."""


storage vault:
    provider="fs",


rule in_r:
    input:
        unpack(unpacked),
    output:
        "parameters/r.txt",
    params:
        text=GIVEN["text"],
        number=GIVEN["number"],
        several=[1, 2, 3],
    script:
        "../scripts/parameters.R"


rule stored:
    input:
        "ordered.txt",
    output:
        storage.vault("vault/it's {word}.txt"),
    shell:
        "cat {input} > {output:q}; echo {wildcards.word} >> {output:q}"


rule fetched:
    input:
        storage.vault("vault/it's stored.txt"),
        again=storage.vault("vault/it's again.txt"),
    output:
        "fetched.txt",
    script:
        "../scripts/fetched.py"


STORAGE = ["fetched.txt", "parameters/r.txt"]
