# Training: one rule, reused for each group of experiments. The fingerprint is what makes a run
# start again: it holds model, recipe, data, seed and parent, and no title or comment.
#
# Checkpoints and journal lie in the run's work folder. They are no outputs: Snakemake deletes
# outputs before a job, and an interrupted run has to go on from them.


rule pretrain:
    input:
        lambda w: plan(w.scale).training_inputs(run_of(w)),
    output:
        metrics=PATHS["metrics"],
        weights=PATHS["weights"],
    log:
        f"{LOGS}/train/{{experiment}}-seed{{seed}}.log",
    wildcard_constraints:
        experiment=dag.pattern(PLAN.group("pretrain")),
    conda:
        "../envs/smt.yaml"
    threads: lambda w: plan(w.scale).project.scale.threads
    resources:
        mem_mb=lambda w: plan(w.scale).training_memory_mb(),
        runtime=1440,  # on a cluster; a longer training stops, saves and goes on
    params:
        fingerprint=lambda w: plan(w.scale).fingerprint(run_of(w)),
    message:
        "Train {wildcards.experiment}, seed {wildcards.seed}"
    shell:
        "smt train {wildcards.experiment:q} --seed {wildcards.seed:q} --scale {wildcards.scale:q}"
        " 2>&1 | tee -i {log:q}"


use rule pretrain as finetune with:
    wildcard_constraints:
        experiment=dag.pattern(PLAN.group("finetune")),


use rule pretrain as ablation with:
    wildcard_constraints:
        experiment=dag.pattern(PLAN.group("ablation")),
