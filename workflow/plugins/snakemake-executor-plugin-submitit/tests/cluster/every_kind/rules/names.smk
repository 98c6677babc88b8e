"""File names that a shell, YAML or a command line could misread."""

HOSTILE = "'it's \"a\" 100% $HOME `id` [x] \\n, ;&|*?~#! (ü) =日本'"
LONG = "/".join(
    "".join(map(str, range(i, i + 80))) for i in (100, 200, 300)
)  # 240 characters each
NAMES = [f"names/{HOSTILE}/copy.txt", f"names/{LONG}/copy.txt", "names/many.txt"]


rule named:
    output:
        "names/{name}/made.txt",
    shell:
        "echo {wildcards.name:q} > {output:q}"


rule copied:
    input:
        "names/{name}/made.txt",
    output:
        "names/{name}/copy.txt",
    log:
        "names/{name}/copy.log",
    shell:
        "cp {input:q} {output:q}; echo {wildcards.name:q} > {log:q}"


rule many:
    output:
        expand("names/many of $HOME and 'it'/{i}.txt", i=range(25)),
    shell:
        "touch {output:q}"


rule take_many:
    input:
        rules.many.output,
    output:
        "names/many.txt",
    shell:
        "ls {input:q} > {output}"
