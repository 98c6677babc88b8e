# Proof that interrupted trainings end as undisturbed ones: `snakemake proof`. It is no part of
# `all`: it kills trainings on purpose, in a folder of its own.


rule prove:
    input:
        lambda w: plan(w.scale).training_inputs(run_of(w)),
    output:
        PATHS["proved"],
    log:
        f"{LOGS}/prove/{{experiment}}-seed{{seed}}-ranks{{ranks}}.log",
    wildcard_constraints:
        ranks=r"[1-9]\d{0,2}",
    conda:
        "../envs/smt.yaml"
    threads: lambda w: int(w.ranks) * plan(w.scale).project.scale.threads
    resources:
        mem_mb=lambda w: int(w.ranks) * plan(w.scale).training_memory_mb(),
        runtime=1440,
    params:
        fingerprint=lambda w: plan(w.scale).fingerprint(run_of(w)),
        kills=lambda w: plan(w.scale).proof_kills(),
        source=lambda w: dag.source_digest(),
    message:
        "Kill and compare {wildcards.experiment}, seed {wildcards.seed}, processes: {wildcards.ranks}"
    shell:
        "smt prove {wildcards.experiment:q} --seed {wildcards.seed:q} --ranks {wildcards.ranks:q}"
        " --kills {params.kills} --tables never --scale {wildcards.scale:q} > {log:q} 2>&1"


rule proof_table:
    input:
        lambda w: plan(w.scale).proofs(),
    output:
        report(
            f"{PATHS['proof']}/proof.html",
            caption="../report/table.rst",
            category="Proof",
            labels={"table": "proof", "scale": "{scale}"},
        ),
        multiext(f"{PATHS['proof']}/proof", ".md", ".csv", ".tex"),
    log:
        f"{LOGS}/prove/tables.log",
    conda:
        "../envs/smt.yaml"
    resources:
        mem_mb=1000,
        runtime=60,
    message:
        "Make the table of proofs"
    shell:
        "smt prove --tables only --scale {wildcards.scale:q} > {log:q} 2>&1"
