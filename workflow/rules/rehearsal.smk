# Rehearsal of every experiment on a fake GPU: `snakemake rehearse`. It is no part of `all`: it needs
# the torch of requirements.lock, and no GPU, which is hidden from it where there is one.


rule rehearsal:
    output:
        PATHS["rehearsal"],
    log:
        f"{LOGS}/rehearse/{{experiment}}.log",
    conda:
        "../envs/smt.yaml"
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        content=lambda w: plan(w.scale).rehearsal_content(w.experiment),
    message:
        "Rehearse {wildcards.experiment}"
    shell:
        # What does not fit is for the table to say: a job that fails would take it away.
        "CUDA_VISIBLE_DEVICES= smt rehearse {wildcards.experiment:q} --exit-zero"
        " --scale {wildcards.scale:q} > {log:q} 2>&1"


rule rehearsal_table:
    input:
        lambda w: plan(w.scale).rehearsals(),
    output:
        report(
            f"{PATHS['rehearsals']}/rehearsal.html",
            caption="../report/table.rst",
            category="Rehearsal",
            labels={"table": "rehearsal", "scale": "{scale}"},
        ),
        multiext(f"{PATHS['rehearsals']}/rehearsal", ".md", ".csv", ".tex"),
    log:
        f"{LOGS}/rehearse/table.log",
    conda:
        "../envs/smt.yaml"
    resources:
        mem_mb=4000,
        runtime=120,  # what would help experiments that do not fit is rehearsed here
    params:
        gpu=lambda w: plan(w.scale).project.cluster.gpu,
    message:
        "Make the table of rehearsals"
    shell:
        "CUDA_VISIBLE_DEVICES= smt rehearse --table --scale {wildcards.scale:q} > {log:q} 2>&1"
