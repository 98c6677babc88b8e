# Data: made here at demo scale, brought by the user at paper scale; a manifest of each either way.


rule demo_data:
    output:
        touch(PATHS["made"]),
    log:
        f"{LOGS}/data/{{data}}.make.log",
    priority: 2  # every training waits for it
    conda:
        "../envs/smt.yaml"
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        key=lambda w: plan(w.scale).data_keys[w.data],
        content=lambda w: plan(w.scale).data_content(plan(w.scale).data_keys[w.data]),
    message:
        "Make demo data: {params.key}"
    shell:
        "smt data make {params.key:q} --scale {wildcards.scale:q} > {log:q} 2>&1"


rule manifest:
    input:
        lambda w: plan(w.scale).manifest_inputs(w.data),
    output:
        PATHS["manifest"],
    log:
        f"{LOGS}/data/{{data}}.manifest.log",
    priority: 2  # every training waits for it
    conda:
        "../envs/smt.yaml"
    resources:
        mem_mb=2000,
        runtime=720,
    params:
        key=lambda w: plan(w.scale).data_keys[w.data],
        content=lambda w: plan(w.scale).data_content(plan(w.scale).data_keys[w.data]),
    message:
        "Write manifest: {params.key}"
    shell:
        "smt data manifest {params.key:q} --scale {wildcards.scale:q} > {log:q} 2>&1"
