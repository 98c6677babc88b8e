"""Parameters of every type, as each way to write a rule's command has them."""

from pathlib import Path as _Path


def frame(wildcards):
    import pandas  # which would delay every job

    return pandas.DataFrame({"a": [1, 2], "b": ["x", "it's"]})


GIVEN = {
    "text": 'it\'s "quoted"; $HOME `id` \\ %s ü 日本',
    "lines": "one\n\ttwo\n",
    "empty": "",
    "braces": lambda wildcards: "{x}",
    "number": -3,
    "real": 1e-5,
    "infinite": float("inf"),
    "nothing": None,
    "true": True,
    "several": [1, "two", None, [3.5]],
    "pair": (1, "two"),
    "table": {"a": {"b": [1, 2]}, "it's": "ü"},
    "unordered": {3, 1, 2},
    "path": _Path("some/path with space"),
    "raw": b"\x00\xff",
    "frame": frame,
}
PARAMETERS = expand("parameters/{way}.txt", way=["run", "python", "bash", "shell"])


def unpacked(wildcards):
    return {"first": "ordered.txt", "second": ["part/first.txt", "ordered.txt"]}


rule in_run:
    input:
        unpack(unpacked),
    output:
        "parameters/{way}.txt",
    wildcard_constraints:
        way="run",
    threads: 2
    params:
        **GIVEN,
        computed=lambda wildcards, input, output, threads: [
            wildcards.way,
            *input,
            threads,
        ],
    run:
        with open(output[0], "w") as file:
            for name, value in params.items():
                print(name, repr(value), file=file)
            print(
                dict(input.items()), threads, resources.mem_mb, wildcards, file=file
            )


rule in_python:
    input:
        unpack(unpacked),
    output:
        "parameters/python.txt",
    log:
        "logs/python.log",
    resources:
        word="it's $HOME",
    params:
        *["positional", 1],
        **GIVEN,
        configured=config,
    script:
        "../scripts/parameters.py"


rule in_bash:
    input:
        unpack(unpacked),
    output:
        "parameters/bash.txt",
    params:
        text=GIVEN["text"],
        number=GIVEN["number"],
    script:
        "../scripts/parameters.sh"


rule in_shell:
    output:
        "parameters/shell.txt",
    params:
        "positional",
        **GIVEN,
        configured=config,
        variable=lambda wildcards: os.environ["EVERY_KIND"],
    shell:
        """
        printf '%s\\n' {params[0]} {params.text:q} {params.lines:q} {params.number} {params.real} \
            {params.several:q} {params.path:q} {params.configured:q} {params.variable:q} \
            "$EVERY_KIND" >{output}
        """
