# ruff: noqa: UP045  (Snakemake reads the types of these fields, and knows only Optional)
"""What a user may set: `--submitit-NAME` on the command line, `submitit-NAME` in a profile."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

CLUSTERS = ("slurm", "local", "debug")
ON_INTERRUPT = ("cancel", "leave")
KEEP_LOGS = ("failed", "all")


def _choice(name: str, value: str | None, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise ValueError(f"submitit-{name}: {value!r} is not known; valid: {', '.join(valid)}")
    return value


def _at_least(name: str, value: float | None, least: float) -> None:
    if value is None or value < least:
        raise ValueError(f"submitit-{name}: {value} is too small; valid: {least:g} or more")


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """Settings of the executor. Durations are in seconds.

    Raises:
        ValueError: a value that is not valid; the message names the setting and what is.
    """

    cluster: Optional[str] = field(
        default="slurm",
        metadata={
            "help": "Where jobs run: slurm; local, in processes of this machine; debug, inside "
            "Snakemake's own process.",
            "choices": CLUSTERS,
        },
    )
    folder: Optional[Path] = field(
        default=Path(".snakemake/submitit"),
        metadata={
            "help": "Folder of job files and logs. Every node has to see it.",
            "type": Path,
        },
    )
    resumable: bool = field(
        default=False,
        metadata={
            "help": "Take every rule for `resumable` that does not say: told to save before its "
            "time limit, and started again to go on.",
        },
    )
    signal_delay: Optional[int] = field(
        default=120,
        metadata={
            "help": "How long before its time limit a resumable job is told to save and stop, in "
            "seconds.",
            "type": int,
        },
    )
    max_requeues: Optional[int] = field(
        default=50,
        metadata={"help": "How often a job may be started again before it fails.", "type": int},
    )
    max_stalls: Optional[int] = field(
        default=2,
        metadata={
            "help": "How many attempts in a row may end without progress, for a reason of their "
            "own, before the job fails.",
            "type": int,
        },
    )
    poll_interval: Optional[float] = field(
        default=0.5,
        metadata={
            "help": "Seconds between two looks at the folder for results. Asks SLURM nothing.",
            "type": float,
        },
    )
    status_interval: Optional[float] = field(
        default=10.0,
        metadata={
            "help": "Least seconds between two questions to SLURM, each one for all jobs. Grows "
            "to six times as much while nothing changes or SLURM does not answer.",
            "type": float,
        },
    )
    submit_timeout: Optional[int] = field(
        default=600,
        metadata={
            "help": "For how many seconds a submission is tried again while SLURM does not answer.",
            "type": int,
        },
    )
    default_runtime: Optional[int] = field(
        default=60,
        metadata={"help": "Time limit of rules without `runtime`, in minutes.", "type": int},
    )
    on_interrupt: Optional[str] = field(
        default="cancel",
        metadata={
            "help": "What Ctrl-C does to jobs: cancel, or leave them to the next start.",
            "choices": ON_INTERRUPT,
        },
    )
    keep_logs: Optional[str] = field(
        default="failed",
        metadata={"help": "Which jobs' logs stay in the folder.", "choices": KEEP_LOGS},
    )
    keep_logs_days: Optional[int] = field(
        default=30,
        metadata={
            "help": "How many days logs stay in the folder; older ones are removed at a start.",
            "type": int,
        },
    )
    own_resources: Optional[str] = field(
        default=None,
        metadata={
            "help": "Names of resources, with commas between them, that mean something to the "
            "workflow alone, as gpu,time.",
        },
    )
    python: Optional[str] = field(
        default=None,
        metadata={
            "help": "Shell command for Python on the nodes, as within a container "
            "[the Python that runs Snakemake].",
        },
    )
    setup: Optional[str] = field(
        default=None,
        metadata={
            "help": "Shell command that a job runs first, as `module load cuda`; if it fails, so "
            "does the job."
        },
    )
    wckey: Optional[str] = field(
        default=None,
        metadata={"help": "Workload characterization key of the jobs, where SLURM wants one."},
    )

    def __post_init__(self) -> None:
        _choice("cluster", self.cluster, CLUSTERS)
        _choice("on-interrupt", self.on_interrupt, ON_INTERRUPT)
        _choice("keep-logs", self.keep_logs, KEEP_LOGS)
        _at_least("signal-delay", self.signal_delay, 5)
        _at_least("max-requeues", self.max_requeues, 0)
        _at_least("max-stalls", self.max_stalls, 1)
        _at_least("poll-interval", self.poll_interval, 0.05)
        _at_least("status-interval", self.status_interval, 1)
        _at_least("submit-timeout", self.submit_timeout, 0)
        _at_least("default-runtime", self.default_runtime, 1)
        _at_least("keep-logs-days", self.keep_logs_days, 0)


common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=True,
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
)
