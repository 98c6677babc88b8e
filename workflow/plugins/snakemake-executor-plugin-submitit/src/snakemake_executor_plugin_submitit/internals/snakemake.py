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
    """Ask whether all that is used is there.

    Raises:
        ApiError: naming what is not.
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


# --- the DAG: the interface has it for one job at a time, and only while it runs ------------------


def jobs_to_run(workflow: Any) -> list[Any]:
    """Return all jobs that this start of Snakemake will run."""
    return list(workflow.dag.needrun_jobs())


def all_jobs(workflow: Any) -> list[Any]:
    """Return all jobs of the DAG, those included whose outputs are there."""
    return list(workflow.dag.jobs)


def is_forced(job: Any, workflow: Any) -> bool:
    """Return whether the user wants a single job to run, whatever is there (-f, -F, -R).

    The DAG's own word of it holds for unfinished outputs as well, which a job that is taken over
    has until it ends.
    """
    dag, chosen = workflow.dag, workflow.dag_settings
    if job.rule in dag.forcerules and job not in dag.omitforce:
        return True
    named = set(chosen.forcerun) | (set(chosen.targets) if chosen.forcetargets else set())
    return not {os.path.normpath(each) for each in map(str, named)}.isdisjoint(
        os.path.normpath(each) for each in map(str, job.output)
    )


def limited_resources(workflow: Any) -> set[str]:
    """Return the names of the resources that the user limits for the whole workflow."""
    return set(workflow.global_resources)


# --- what jobs are made from: in Snakemake's own words, which decide of a re-run ------------------


def rerun_triggers(workflow: Any) -> Iterable[str]:
    """Return the kinds of change that have a job run again, as `--rerun-triggers` names them."""
    return [each.name.lower().replace("_", "-") for each in workflow.rerun_triggers]


def checksum_limit(workflow: Any) -> int:
    """Return the size in bytes up to which files are told apart by their content."""
    return int(workflow.dag_settings.max_checksum_file_size)


def code(job: Any, workflow: Any) -> Any:
    """Return the text of a rule's command or Python, and what it takes from elsewhere."""
    rule = job.rule
    return [workflow.persistence._code(rule), rule.wrapper, rule.cwl]


def params(job: Any) -> list[Any]:
    """Return the parameters of a job that do not follow from its inputs and outputs."""
    return list(job.non_derived_params)


def inputs(job: Any, workflow: Any) -> list[Any]:
    """Return the names of a job's inputs, those of storage by what was asked of it."""
    return list(workflow.persistence._input(job))


def software(job: Any, workflow: Any) -> str:
    """Return a digest of the environment that a job's rule asks for."""
    return str(workflow.persistence._software_stack_hash(job))


def script(job: Any) -> str | None:
    """Return the path or address of a job's script or notebook."""
    named = job.rule.script or job.rule.notebook
    if not named:
        return None
    return str(job._path_to_source_file(named).get_path_or_uri(secret_free=True))


# --- Snakemake's records of outputs: a job that ends while no Snakemake runs is put on them -------


def marks(members: Iterable[Any], persistence: Any) -> Iterable[tuple[str, str]]:
    """Yield path and content of the marks of unfinished outputs, where they are files."""
    if not hasattr(persistence, "_incomplete_path"):  # in a database: `--persistence-backend`
        return
    for member in members:
        for output in member.output:
            path = persistence._record_path(
                persistence._incomplete_path, persistence._get_key(output)
            )
            yield str(Path(path).absolute()), json.dumps({"external_jobid": None})


async def record(job: Any, workflow: Any) -> None:
    """Have Snakemake record what the outputs of a single job were made with."""
    await workflow.persistence.finished(job)


def is_locked_by_another(workflow: Any) -> bool:
    """Return whether another Snakemake has locked this directory; this one has if it may."""
    ours = bool(workflow.execution_settings.lock)
    return bool(getattr(workflow.persistence, "locked", False)) and not ours


# --- Snakemake's command within a job -------------------------------------------------------------

_START = """
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
"""What `python -m snakemake` does, but for two things.

It collects no garbage while it imports a thousand modules: importing is most of what a short job
does, and all that it makes there lasts until the end. And wildcards come percent-encoded, for
Snakemake would take them apart at commas and strip their quotes.
"""


def start_of_job(command: str, job: Any, workflow: Any) -> str:
    """Return Snakemake's command line for a job as one that a shell reads as it is meant.

    Snakemake quotes words as Python does; a shell replaces `$NAME` in what is in double quotes.
    """
    targets = [
        spec._replace(
            wildcards_dict={
                name: quote(str(value), safe="") for name, value in spec.wildcards_dict.items()
            }
        )
        for spec in job.get_target_spec()
    ]
    written = encode_target_jobs_cli_args(job.get_target_spec())
    command = _rewrite(command, "--target-jobs", written, encode_target_jobs_cli_args(targets))
    temporary = list(workflow.dag.get_unneeded_temp_files(job))
    command = _rewrite(command, "--unneeded-temp-files", temporary, temporary)
    config = workflow.config_settings.config_args
    command = _rewrite(command, "--config", config, config)
    return command.replace(" -m snakemake ", f" -c {shlex.quote(_START)} ", 1)


def _rewrite(command: str, option: str, written: Iterable[str], words: Iterable[str]) -> str:
    """Return a command line in which an option that Snakemake wrote has these words."""
    old = str(format_cli_arg(option, written))
    if old not in command:
        raise WorkflowError(f"submitit: Snakemake writes {option} otherwise than {old}")
    return command.replace(old, f"{option} {shlex.join(map(str, words))}", 1) if old else command


def arguments_within_jobs() -> str:
    """Return arguments that save each job a second, and leave its retries to who submitted it.

    Snakemake else waits for that second at its end. And it would try a rule again within the job,
    with what SLURM gave to the first attempt; rules that are preemptible have a number of retries
    of their own, and nothing else comes of it here.
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
