# Training: one rule, reused for each group of experiments. The fingerprint is a param, so that a
# change of model, recipe, data, seed or parent runs the rule again; a title or comment does not.
#
# On a cluster a training gets nodes, GPUs and hours as params/cluster.yaml has them, one process a
# GPU: `smt train` starts itself once for each task of its job. If it is stopped, it requests a requeue.
#
# The driver sends the journals to MLflow, so that nodes need no network and one process writes.
#
# Checkpoints and journal are in the run's work folder and are not declared as outputs: Snakemake
# deletes declared outputs before a job starts, and a run resumes from these files.


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
    priority: 1  # above ablations and evaluations: what takes long does not come last
    conda:
        "../envs/smt.yaml"
    threads: lambda w: plan(w.scale).project.scale.threads
    resources:
        mem_mb=lambda w: plan(w.scale).resources(run_of(w)).mem_mb,
        runtime=lambda w: plan(w.scale).resources(run_of(w)).runtime,
        resumable=True,
        nodes=lambda w: plan(w.scale).resources(run_of(w)).nodes,
        tasks_per_node=lambda w: plan(w.scale).resources(run_of(w)).tasks_per_node,
        cpus_per_task=lambda w: plan(w.scale).resources(run_of(w)).cpus_per_task,
        gpus_per_node=lambda w: plan(w.scale).resources(run_of(w)).gpus_per_node,
        slurm_comment=lambda w: plan(w.scale).job_comment(run_of(w)),
    params:
        fingerprint=lambda w: plan(w.scale).fingerprint(run_of(w)),
    message:
        "Train {wildcards.experiment}, seed {wildcards.seed}"
    shell:
        "smt train {wildcards.experiment:q} --seed {wildcards.seed:q} --scale {wildcards.scale:q}"
        " --no-send > {log:q} 2>&1"


use rule pretrain as finetune with:
    wildcard_constraints:
        experiment=dag.pattern(PLAN.group("finetune")),


use rule pretrain as ablation with:
    wildcard_constraints:
        experiment=dag.pattern(PLAN.group("ablation")),
    priority: 0


use rule pretrain as detect with:
    wildcard_constraints:
        experiment=dag.pattern(PLAN.group("detect")),


use rule pretrain as segment with:
    wildcard_constraints:
        experiment=dag.pattern(PLAN.group("segment")),
