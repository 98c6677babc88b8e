"""Jobs that run together: in groups, with pipes, and beside a service."""

GROUPS = ["groups/second.txt", "groups/counted.txt", "groups/asked.txt"]


rule first:
    output:
        temp("groups/first_{i}.txt"),
    group:
        "chain"
    threads: 2
    params:
        text="it's $HOME",
    shell:
        "echo {wildcards.i:q} {threads} {params.text:q} > {output:q}"


rule second:
    input:
        expand("groups/first_{i}.txt", i=["one", "two", "it's $HOME"]),
    output:
        "groups/second.txt",
    log:
        "logs/second.log",
    group:
        "chain"
    run:
        with open(output[0], "w") as file:
            file.write("".join(open(each).read() for each in input))
        with open(log[0], "w") as file:
            print("chained", file=file)


rule piped:
    output:
        pipe("groups/piped.txt"),
    shell:
        "seq 1000 > {output}"


rule counted:
    input:
        "groups/piped.txt",
    output:
        "groups/counted.txt",
    shell:
        "wc -l < {input} > {output}"


rule served:
    output:
        service("groups/service.fifo"),
    shell:
        "mkfifo {output}; while true; do echo answer > {output}; done"


rule asked:
    input:
        "groups/service.fifo",
    output:
        "groups/asked.txt",
    shell:
        "until [ -p {input} ]; do sleep 0.1; done; head -n 1 {input} > {output}"
