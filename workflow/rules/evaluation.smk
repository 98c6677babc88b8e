# Evaluation of exported weights, apart from training. For a detector or segmenter it writes the
# predictions as well: a sheet of samples, which the report shows, and files in the format of the
# test servers of COCO and ADE20K. The folder of predictions is not declared: Snakemake would delete
# it before a job, and nothing in the DAG reads it.


rule evaluate:
    input:
        lambda w: plan(w.scale).training_manifests(run_of(w)),
        metrics=PATHS["metrics"],
        weights=PATHS["weights"],
    output:
        PATHS["evaluation"],
    log:
        f"{LOGS}/evaluate/{{experiment}}-seed{{seed}}.log",
    wildcard_constraints:
        experiment=dag.pattern(PLAN.with_head(False)),
    conda:
        "../envs/smt.yaml"
    threads: lambda w: plan(w.scale).project.scale.threads
    resources:
        mem_mb=lambda w: plan(w.scale).training_memory_mb(),
        runtime=120,
        cpus_per_task=lambda w: plan(w.scale).resources(run_of(w)).cpus_per_task,
        gpus_per_node=1,
    message:
        "Evaluate {wildcards.experiment}, seed {wildcards.seed}"
    shell:
        "smt evaluate {wildcards.experiment:q} --seed {wildcards.seed:q}"
        " --scale {wildcards.scale:q} > {log:q} 2>&1"


use rule evaluate as evaluate_downstream with:
    output:
        PATHS["evaluation"],
        PATHS["samples"],
    wildcard_constraints:
        experiment=dag.pattern(PLAN.with_head(True)),
