"""What is used of Snakemake."""

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.utils import (
    encode_target_jobs_cli_args,
    format_cli_arg,
    join_cli_args,
)

from snakemake_executor_plugin_submitit.internals import require


def check(workflow: Any) -> None:
    """Check that the installed version has all that is used.

    Raises:
        ApiError: with the name of what is missing.
    """
    from snakemake import cli

    require("snakemake", "Workflow", workflow, (
        "dag", "persistence", "execution_settings", "global_resources", "rerun_triggers",
        "dag_settings", "config_settings",
    ))  # fmt: skip
    require("snakemake", "DAG", workflow.dag, (
        "needrun_jobs", "jobs", "forcerules", "omitforce", "get_unneeded_temp_files",
    ))  # fmt: skip
    require("snakemake", "Persistence", workflow.persistence, (
        "_code", "_input", "_software_stack_hash", "finished", "locked",
    ))  # fmt: skip
    require("snakemake", "cli", cli, ("main", "parse_target_jobs_cli_args"))
    for job in list(workflow.dag.jobs)[:1]:
        require("snakemake", "Job", job, (
            "rule", "wildcards_dict", "non_derived_params", "_path_to_source_file",
        ))  # fmt: skip


# --- the DAG: the interface gives one job at a time, and only while it runs ----------------------


def jobs_to_run(workflow: Any) -> list[Any]:
    """Return all jobs that this run of Snakemake will run."""
    return list(workflow.dag.needrun_jobs())


def all_jobs(workflow: Any) -> list[Any]:
    """Return all jobs of the DAG, including those whose outputs are up to date."""
    return list(workflow.dag.jobs)


def is_forced(job: Any, workflow: Any) -> bool:
    """Return whether the user forces a single job to run (-f, -F, -R).

    The DAG's own reason is forced also for incomplete outputs, which a job of an earlier Snakemake
    run has until it ends.
    """
    dag, settings = workflow.dag, workflow.dag_settings
    if job.rule in dag.forcerules and job not in dag.omitforce:
        return True
    targets = set(settings.forcerun) | (set(settings.targets) if settings.forcetargets else set())
    return not {os.path.normpath(target) for target in map(str, targets)}.isdisjoint(
        os.path.normpath(output) for output in map(str, job.output)
    )


def limited_resources(workflow: Any) -> set[str]:
    """Return the names of resources with a global limit (--resources)."""
    return set(workflow.global_resources)


# --- what outputs are made from, as Snakemake records it for --rerun-triggers ---------------------


def rerun_triggers(workflow: Any) -> Iterable[str]:
    """Return the kinds of change that make a job run again, as in `--rerun-triggers`."""
    return [trigger.name.lower().replace("_", "-") for trigger in workflow.rerun_triggers]


def checksum_limit(workflow: Any) -> int:
    """Return the size in bytes up to which files are compared by checksum."""
    return int(workflow.dag_settings.max_checksum_file_size)


def code(job: Any, workflow: Any) -> Any:
    """Return the text of a rule's shell command or run block, its wrapper and its CWL."""
    rule = job.rule
    return [workflow.persistence._code(rule), rule.wrapper, rule.cwl]


def params(job: Any) -> list[Any]:
    """Return the parameters of a job that are not derived from its inputs and outputs."""
    return list(job.non_derived_params)


def inputs(job: Any, workflow: Any) -> list[Any]:
    """Return the names of a job's inputs; of inputs in a storage, their queries."""
    return list(workflow.persistence._input(job))


def software(job: Any, workflow: Any) -> str:
    """Return a digest of the software environment of a job's rule."""
    return str(workflow.persistence._software_stack_hash(job))


def script(job: Any) -> str | None:
    """Return the path or address of a job's script or notebook."""
    source = job.rule.script or job.rule.notebook
    if not source:
        return None
    return str(job._path_to_source_file(source).get_path_or_uri(secret_free=True))


# --- Snakemake's records of outputs --------------------------------------------------------------


def incomplete_markers(members: Iterable[Any], persistence: Any) -> Iterable[tuple[str, str]]:
    """Yield path and content of the incomplete markers of jobs' outputs, if they are files."""
    if not hasattr(persistence, "_incomplete_path"):  # in a database: `--persistence-backend`
        return
    for member in members:
        for output in member.output:
            path = persistence._record_path(
                persistence._incomplete_path, persistence._get_key(output)
            )
            yield str(Path(path).absolute()), json.dumps({"external_jobid": None})


async def record_outputs(job: Any, workflow: Any) -> None:
    """Let Snakemake record the provenance of a single job's outputs."""
    await workflow.persistence.finished(job)


def is_locked_by_another(workflow: Any) -> bool:
    """Return whether another Snakemake has locked this directory (this one has, if `lock`)."""
    locks = bool(workflow.execution_settings.lock)
    return bool(getattr(workflow.persistence, "locked", False)) and not locks


# --- Snakemake's command line within a job --------------------------------------------------------

_MAIN = """
import gc; gc.disable()
from urllib.parse import unquote
from snakemake import cli
parse = cli.parse_target_jobs_cli_args
cli.parse_target_jobs_cli_args = lambda words: [
    job._replace(wildcards_dict={name: unquote(text) for name, text in job.wildcards_dict.items()})
    for job in parse(words)
]
gc.enable(); gc.freeze()
cli.main()
""".strip()
"""`python -m snakemake` with two changes.

Garbage collection is off during the imports, which take most of a short job's time, and whose
objects live until the end. Wildcards are percent-encoded, since Snakemake would split them at
commas and strip their quotes.
"""


def shell_command(command: str, job: Any, workflow: Any) -> str:
    """Return Snakemake's command line for a job, quoted for a shell.

    Snakemake quotes with Python's repr; a shell expands `$NAME` within double quotes.
    """
    targets = [
        spec._replace(
            wildcards_dict={
                name: quote(str(value), safe="") for name, value in spec.wildcards_dict.items()
            }
        )
        for spec in job.get_target_spec()
    ]
    original = encode_target_jobs_cli_args(job.get_target_spec())
    command = _rewrite(command, "--target-jobs", original, encode_target_jobs_cli_args(targets))
    temporary = list(workflow.dag.get_unneeded_temp_files(job))
    command = _rewrite(command, "--unneeded-temp-files", temporary, temporary)
    config = workflow.config_settings.config_args
    command = _rewrite(command, "--config", config, config)
    return command.replace(" -m snakemake ", f" -c {shlex.quote(_MAIN)} ", 1)


def _rewrite(command: str, option: str, original: Iterable[str], values: Iterable[str]) -> str:
    """Return the command line with an option's `original` values replaced, quoted for a shell."""
    old = str(format_cli_arg(option, original))
    if old not in command:
        raise WorkflowError(
            f"submitit: Snakemake's command line has another {option} than expected: {old}"
        )
    return command.replace(old, f"{option} {shlex.join(map(str, values))}", 1) if old else command


def in_job_arguments() -> str:
    """Return arguments for Snakemake within a job: no wait of a second at its end, no retries.

    A retry within the job would have the resources that SLURM gave to the first attempt; the
    submitting Snakemake retries with those of the next one. --preemptible-rules has no other effect
    here than that the number of its retries applies.
    """
    return str(
        join_cli_args(
            [
                "--max-jobs-per-timespan 100/0s",
                "--preemptible-rules --preemptible-retries 0",
                "--scheduler greedy",
            ]
        )
    )
