# Shared by the rules: the plan that smt.dag makes from params/, and patterns of paths.

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

from smt import dag, forkserver
from smt.commands.common import warn_if_not_interruptible
from smt.errors import EXIT_BAD_INPUT, EXIT_DATA, UserError
from smt.config.experiments import Run
from smt.tracking import sender


def stop(message, code=EXIT_BAD_INPUT):
    print(f"smt: error: {message}", file=sys.stderr)
    sys.exit(code)


# Jobs run the `smt` of this environment, whether it is activated or not.
os.environ.update(
    PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.getenv('PATH', '')}"
)

try:
    validate(config, "../schemas/config.schema.yaml")
    plan = dag.plans(config.get("seeds"))
    PLAN = plan(config["scale"])
    SCALES = dag.scales()
except WorkflowError as error:
    reason = getattr(error.__context__, "message", error)
    stop(f"--config: {reason}; valid: scale=NAME, seeds=[0,1]")
except UserError as error:
    stop(error)

PATHS = dag.paths()
ROOT = PATHS["root"]
LOGS = f"{ROOT}/logs"


wildcard_constraints:
    scale=dag.pattern(SCALES),
    experiment=dag.pattern(PLAN.project.order),
    seed=r"0|[1-9]\d{0,9}",
    data=dag.pattern(PLAN.data_keys),
    table=dag.pattern(PLAN.report.tables),
    selection=dag.pattern([*PLAN.report.tables, dag.EVERYTHING]),


def run_of(wildcards):
    return Run(experiment=wildcards.experiment, seed=int(wildcards.seed))


def are_all_tables_requested():
    # Known once the targets are, which is after these files are read. A job that another Snakemake
    # has started makes its own part alone.
    settings = workflow.dag_settings
    if settings.target_jobs:
        return False
    return not settings.targets or not dag.MAKE_EVERY_TABLE.isdisjoint(settings.targets)


def released_results():
    if not PLAN.released:
        stop(
            "params/released.yaml: no entry of released names a file; set the file of one, such as "
            "released.imagenet1k_smt_tiny.file"
        )
    return PLAN.released_results()


def require_data(jobs):
    missing = dag.missing_data(jobs, plan)
    if missing:
        stop(missing, EXIT_DATA)


SENDER = FORKSERVER = None


def begin(jobs):
    """Check data, warn, and start the processes that live as long as this one."""
    require_data(jobs)
    if workflow.local_exec:
        warn_if_not_interruptible()  # the executor of SLURM says so itself
    preload(jobs)
    send_while_training(jobs)


def end():
    """End what `begin` started."""
    sender.stop(SENDER)
    forkserver.stop(FORKSERVER)


def preload(jobs):
    """Import torch once for all jobs, if these run on this machine and in this environment.

    That takes as long as the imports of two or three jobs.
    """
    global FORKSERVER
    ours = workflow.local_exec and not workflow.deployment_settings.deployment_method
    if ours and len(jobs) > 3:
        FORKSERVER = forkserver.start()


def send_while_training(jobs):
    """Send journals to MLflow from here, until the end of this process."""
    global SENDER
    if sender.is_enabled() and any(job.rule.name in dag.TRAINING_RULES for job in jobs):
        SENDER = sender.start(PLAN.layout)


def explain_failures():
    for run, cause in PLAN.failures().items():
        print(f"smt: {run} failed: {cause}", file=sys.stderr)
    scale = PLAN.layout.scale
    print(
        "smt: tables of what is done, with the state of the others: "
        f"smt sync --scale {scale} && smt tables --scale {scale}",
        file=sys.stderr,
    )


def announce_results():
    if PLAN.layout.tables.is_dir():
        print(
            f"smt: tables in {PLAN.layout.tables}/, figures in {PLAN.layout.figures}/,"
            f" all of it on one page: {PLAN.layout.report}"
        )
