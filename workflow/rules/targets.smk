# Targets by name: `snakemake tables`, `snakemake imagenet1k_smt_tiny`. Any output file is a target
# as well, by its path.


rule data:
    input:
        [PLAN.manifest(key) for key in PLAN.needed_data],


rule pretraining:
    input:
        PLAN.results(PLAN.group("pretrain")),


rule finetuning:
    input:
        PLAN.results(PLAN.group("finetune")),


rule ablations:
    input:
        PLAN.results(PLAN.group("ablation")),


rule detection:
    input:
        PLAN.results(PLAN.group("detect")),


rule segmentation:
    input:
        PLAN.results(PLAN.group("segment")),


rule evaluation:
    input:
        PLAN.results(),


rule released:
    input:
        lambda w: released_results(),


rule sizes:
    input:
        PLAN.layout.sizes,


rule sync:
    input:
        PLAN.report.synced(dag.EVERYTHING),


rule tables:
    # The results by name, or tables that `smt tables` wrote of runs that are not done would do.
    input:
        PLAN.results(PLAN.report.tabulated),
        expand(
            "{folder}/{table}.html",
            folder=PLAN.layout.tables,
            table=PLAN.report.tables,
        ),
        PLAN.layout.tables / "index.html",


rule figures:
    input:
        expand(
            "{folder}/{figure}.svg",
            folder=PLAN.layout.figures,
            figure=PLAN.report.figures,
        ),


rule pictures:
    input:
        PLAN.report.pictured(),


rule report:
    input:
        rules.tables.input,
        rules.figures.input,
        rules.pictures.input,
        PLAN.layout.report,


rule rehearse:
    input:
        PLAN.layout.rehearsals / "rehearsal.html",


rule proof:
    input:
        PLAN.layout.proof / "proof.html",


rule all:
    default_target: True
    input:
        rules.data.input,
        rules.evaluation.input,
        rules.sync.input,
        rules.tables.input,
        rules.report.input,
    message:
        "All targets are up to date"


localrules:
    all,
    data,
    pretraining,
    finetuning,
    ablations,
    detection,
    segmentation,
    evaluation,
    released,
    sizes,
    sync,
    tables,
    figures,
    pictures,
    report,
    rehearse,
    proof,


try:
    dag.forbid_names(PLAN, {rule.name for rule in workflow.rules})
except UserError as error:
    sys.exit(f"smt: error: {error}")


for name in PLAN.project.order:

    rule:
        name:
            name
        input:
            PLAN.results([name]),
        localrule: True
