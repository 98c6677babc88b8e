# Weights of others, from the files that params/released.yaml names: `snakemake released`. They are
# part of `all` only where it names some. Predictions are kept beside the output and not declared:
# what was interrupted goes on from them.


rule evaluate_released:
    input:
        lambda w: plan(w.scale).released_inputs(w.experiment),
    output:
        PATHS["released"],
    log:
        f"{LOGS}/evaluate/{{experiment}}-released.log",
    wildcard_constraints:
        experiment=dag.pattern(PLAN.released),
    conda:
        "../envs/smt.yaml"
    threads: lambda w: plan(w.scale).project.scale.threads
    resources:
        mem_mb=lambda w: plan(w.scale).training_memory_mb(),
        runtime=720,
        resumable=True,
        gpus_per_node=1,
    params:
        file=lambda w: str(plan(w.scale).released_file(w.experiment)),
        content=lambda w: plan(w.scale).released_content(w.experiment),
    message:
        "Evaluate released weights in the place of {wildcards.experiment}"
    shell:
        "smt evaluate {wildcards.experiment:q} --released {params.file:q}"
        " --scale {wildcards.scale:q} > {log:q} 2>&1"
