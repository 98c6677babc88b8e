# Every result of the project, from data to tables. README.md and `make help` say how to run it.

from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/released.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/proof.smk"
include: "workflow/rules/rehearsal.smk"
include: "workflow/rules/targets.smk"


onstart:
    begin(list(workflow.dag.needrun_jobs()))


onsuccess:
    end()
    announce_results()


onerror:
    end()
    explain_failures()
