# Sizes, export to MLflow, tables, figures, pictures and the report. Each table needs only its own experiments;
# where all are made, it also waits for the other seeds that its intervals rest on.


rule profile:
    output:
        PATHS["sizes"],
    log:
        f"{LOGS}/profile.log",
    conda:
        "../envs/smt.yaml"
    resources:
        mem_mb=3000,
        runtime=60,
    params:
        content=lambda w: plan(w.scale).report.sizes_content(),
    message:
        "Count parameters and MACs"
    shell:
        "smt profile --scale {wildcards.scale:q} > {log:q} 2>&1"


rule export:
    # The marker says that the runs of a selection are in MLflow. The receipt, which lists all of
    # them, is no output: each export adds to it.
    input:
        lambda w: plan(w.scale).report.sync_inputs(w.selection),
    output:
        touch(PATHS["synced"]),
    log:
        f"{LOGS}/sync/{{selection}}.log",
    conda:
        "../envs/smt.yaml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        only=lambda w: plan(w.scale).report.sync_options(w.selection),
    message:
        "Send to MLflow: runs of {wildcards.selection}"
    shell:
        "smt sync {params.only:q} --scale {wildcards.scale:q} > {log:q} 2>&1"


rule table:
    input:
        lambda w: plan(w.scale).report.table_inputs(
            w.table, among_all=are_all_tables_requested()
        ),
    output:
        report(
            f"{PATHS['tables']}/{{table}}.html",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}", "scale": "{scale}"},
        ),
        multiext(f"{PATHS['tables']}/{{table}}", ".md", ".csv", ".tex"),
    log:
        f"{LOGS}/tables/{{table}}.log",
    conda:
        "../envs/smt.yaml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        content=lambda w: plan(w.scale).report.table_content(w.table),
    message:
        "Make table {wildcards.table}"
    shell:
        "smt tables {wildcards.table:q} --scale {wildcards.scale:q} > {log:q} 2>&1"


rule index:
    # The page that leads to the tables, once all of them are there.
    input:
        lambda w: plan(w.scale).report.index_inputs(),
    output:
        multiext(f"{PATHS['tables']}/index", ".md", ".html"),
    log:
        f"{LOGS}/tables/index.log",
    conda:
        "../envs/smt.yaml"
    resources:
        mem_mb=1000,
        runtime=60,
    message:
        "Make the page that leads to the tables"
    shell:
        "smt tables index --scale {wildcards.scale:q} > {log:q} 2>&1"


rule plot:
    input:
        lambda w: plan(w.scale).report.figure_inputs(),
    output:
        report(
            expand(
                f"{PATHS['figures']}/{{figure}}.svg",
                figure=PLAN.report.figures,
                allow_missing=True,
            ),
            caption="../report/figure.rst",
            category="Figures",
        ),
        expand(
            f"{PATHS['figures']}/{{figure}}.png",
            figure=PLAN.report.figures,
            allow_missing=True,
        ),
    log:
        f"{LOGS}/figures.log",
    conda:
        "../envs/smt.yaml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        content=lambda w: plan(w.scale).report.figures_content(),
    message:
        "Plot figures"
    shell:
        "smt figures --scale {wildcards.scale:q} > {log:q} 2>&1"


rule look:
    # What a classifier computes, in pictures. Their record is the output: which pictures there are
    # depends on the model, and the report takes only those of the weights that it is about.
    input:
        lambda w: plan(w.scale).training_manifests(run_of(w)),
        metrics=PATHS["metrics"],
        weights=PATHS["weights"],
    output:
        PATHS["pictured"],
    log:
        f"{LOGS}/look/{{experiment}}-seed{{seed}}.log",
    wildcard_constraints:
        experiment=dag.pattern(PLAN.with_head(False)),
    conda:
        "../envs/smt.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        folder=PATHS["pictures"],
    message:
        "Picture what {wildcards.experiment}, seed {wildcards.seed}, computes"
    shell:
        "smt look {input.weights:q} -o {params.folder:q} --format webp > {log:q} 2>&1"


rule report_page:
    # Everything on one page. Not the page of `snakemake --report`, which is about the workflow.
    input:
        lambda w: plan(w.scale).report.report_inputs(),
    output:
        PATHS["report"],
    log:
        f"{LOGS}/report.log",
    conda:
        "../envs/smt.yaml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        content=lambda w: plan(w.scale).report.report_content(),
    message:
        "Write the report"
    shell:
        "smt report --scale {wildcards.scale:q} > {log:q} 2>&1"
