"""What the executor checks and prepares before it submits anything."""

import contextlib
import getpass
import hashlib
import os
import re
import shutil
import signal
from collections.abc import Collection
from pathlib import Path

from snakemake_interface_common.exceptions import ApiError
from snakemake_interface_executor_plugins.logging import LoggerExecutorInterface
from snakemake_interface_executor_plugins.workflow import WorkflowExecutorInterface

from snakemake_executor_plugin_submitit import resources, shared_folder
from snakemake_executor_plugin_submitit.internals import snakemake as internals
from snakemake_executor_plugin_submitit.registry import Registry


def require_sbatch() -> None:
    """Check that jobs can be submitted here.

    Raises:
        ApiError: there is no sbatch.
    """
    if not shutil.which("sbatch"):
        raise ApiError(
            "submitit: no sbatch on PATH: start Snakemake on a host that submits jobs, or choose "
            "--submitit-cluster local"
        )


def make_folder(setting: Path | None) -> Path:
    """Return the folder for the job files of this working directory, which is made if missing.

    Several workflows and users may share a folder outside the working directory, for example by a
    common profile: there each working directory has its own subfolder.

    Raises:
        ApiError: the folder cannot be made.
    """
    here = Path.cwd()
    folder = (here / (setting or ".snakemake/submitit")).absolute()
    unusable = sorted({*"%\\\n"} & {*str(folder)})
    if unusable:
        raise ApiError(
            f"submitit: {str(folder)!r}: SLURM does not accept {unusable[0]!r} in the path of a "
            "log; choose another folder (submitit-folder)"
        )
    try:
        if folder.is_relative_to(here):
            folder.mkdir(parents=True, exist_ok=True)
        else:
            if not shared_folder.exists(folder):
                folder.mkdir(parents=True)
                folder.chmod(0o1777)  # other users make their subfolders here
            digest = hashlib.sha256(str(here).encode()).hexdigest()[:16]
            name = re.sub(r"[^\w.-]", "_", here.name)
            folder = folder / f"{getpass.getuser()}-{name}-{digest}"
            folder.mkdir(exist_ok=True)
        folder.chmod(0o700)  # its pickles are executed
    except OSError as error:
        raise ApiError(f"submitit: {folder}: {error.strerror} (submitit-folder)") from None
    return folder


def open_registry(folder: Path, workflow: WorkflowExecutorInterface) -> Registry:
    """Return the registry of a folder, locked for this process.

    Raises:
        ApiError: another Snakemake runs this workflow, here or on another host.
    """
    try:
        registry = Registry(folder / "jobs")
    except OSError as error:
        raise ApiError(
            f"submitit: {error.filename or folder}: {error.strerror}: the jobs of earlier runs "
            "cannot be read; start again once the file system answers, or remove that file"
        ) from None
    try:
        holder = registry.lock()
    except OSError as error:
        raise ApiError(
            f"submitit: {folder}: the file system does not support locks ({error.strerror}), "
            "without which two Snakemakes could run the same jobs; choose another submitit-folder, "
            "or mount it with locks (flock)"
        ) from None
    if holder:
        raise ApiError(
            f"submitit: {holder} already runs this workflow (it holds {folder}/jobs/driver); wait "
            "for it, or end it: its jobs keep running, and the next Snakemake reattaches to them"
        )
    if internals.is_locked_by_another(workflow):
        raise ApiError(
            "submitit: another Snakemake has locked this directory; wait for it, or if it has "
            "crashed: snakemake --unlock"
        )
    return registry


def check_resources(workflow: WorkflowExecutorInterface, declared: Collection[str]) -> None:
    """Check the rules that will run for unknown resources; `declared` are the workflow's own.

    Raises:
        ApiError: with all unknown resources, and every valid name.
    """
    problems = {
        (job.rule.name, name): hint
        for job in internals.jobs_to_run(workflow)
        for name, hint in resources.unknown(job.rule.resources, declared).items()
    }
    if problems:
        details = ", ".join(
            f"{name} of rule {rule} ({hint})" for (rule, name), hint in problems.items()
        )
        raise ApiError(
            f"submitit: unknown resource {details}; valid: {', '.join(resources.RESOURCES)}; if "
            "it is one of the workflow's own: --submitit-own-resources NAME,..."
        )


def warn_of_ignored_sigint(logger: LoggerExecutorInterface) -> None:
    """Warn if this process inherited to ignore SIGINT, with the signals that work instead."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        pid = os.getpid()
        logger.warning(
            "submitit: SIGINT is ignored, as under nohup or in the background of a script: Ctrl-C "
            f"and kill -INT have no effect; kill -TERM {pid} ends Snakemake after its jobs, "
            f"kill -KILL {pid} at once, and the next Snakemake reattaches to the jobs"
        )


def report_ignored_options(logger: LoggerExecutorInterface) -> None:
    """Report options of sbatch in the environment, which are ignored."""
    options = sorted(name for name in os.environ if name.startswith("SBATCH_"))
    if options:
        logger.info(
            f"submitit: environment variables {', '.join(options)} are ignored, since they would "
            "override the resources of rules; set default-resources in the profile"
        )


def ignore_second_sigint() -> None:
    """Let the first Ctrl-C interrupt Snakemake, and ignore others while it cancels the jobs."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):  # only the main thread can set handlers
        signal.signal(signal.SIGINT, interrupt)
