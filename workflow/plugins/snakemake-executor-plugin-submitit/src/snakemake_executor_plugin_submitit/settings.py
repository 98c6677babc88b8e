# ruff: noqa: UP045  (Snakemake reads the types of these fields, and knows only Optional)
"""The settings: `--submitit-NAME` on the command line, `submitit-NAME` in a profile."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

CLUSTERS = ("slurm", "local", "debug")
ON_INTERRUPT = ("cancel", "leave")
KEEP_LOGS = ("failed", "all")


def _check_choice(name: str, value: str | None, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"submitit-{name}: {value!r} is not valid; valid: {', '.join(valid)}")


def _check_minimum(name: str, value: float | None, minimum: float) -> None:
    if value is None or value < minimum:
        raise ValueError(f"submitit-{name}: {value} is too small; valid: {minimum:g} or more")


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """Settings of the executor. Durations are in seconds.

    Raises:
        ValueError: a value is not valid; the message has the setting and the valid values.
    """

    cluster: Optional[str] = field(
        default="slurm",
        metadata={
            "help": "Where jobs run: slurm; local, in processes of this machine; debug, in "
            "Snakemake's own process.",
            "choices": CLUSTERS,
        },
    )
    folder: Optional[Path] = field(
        default=Path(".snakemake/submitit"),
        metadata={
            "help": "Folder for job files and logs. It must be visible on every node.",
            "type": Path,
        },
    )
    resumable: bool = field(
        default=False,
        metadata={
            "help": "Default of the resource `resumable`: signalled (SIGUSR2) to save before the "
            "time limit, then requeued to resume.",
        },
    )
    signal_delay: Optional[int] = field(
        default=120,
        metadata={
            "help": "Seconds before the time limit at which a resumable job is signalled (SIGUSR2) "
            "to save and stop.",
            "type": int,
        },
    )
    max_requeues: Optional[int] = field(
        default=50,
        metadata={"help": "How often a job may be requeued before it fails.", "type": int},
    )
    max_stalls: Optional[int] = field(
        default=2,
        metadata={
            "help": "How many attempts in a row may end without progress before the job fails. "
            "Attempts that SLURM ended do not count.",
            "type": int,
        },
    )
    poll_interval: Optional[float] = field(
        default=0.5,
        metadata={
            "help": "Seconds between two looks for results in the folder. SLURM is not polled.",
            "type": float,
        },
    )
    status_interval: Optional[float] = field(
        default=10.0,
        metadata={
            "help": "Minimum seconds between two polls of SLURM, each for all jobs. Grows to six "
            "times as much while nothing changes or SLURM does not answer.",
            "type": float,
        },
    )
    submit_timeout: Optional[int] = field(
        default=600,
        metadata={
            "help": "For how many seconds a submission is retried while SLURM does not answer.",
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
            "help": "What Ctrl-C does to jobs: cancel, or leave them to the next Snakemake.",
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
            "help": "Days that logs stay in the folder; older ones are removed at the next start.",
            "type": int,
        },
    )
    own_resources: Optional[str] = field(
        default=None,
        metadata={
            "help": "Resources that the workflow defines for its own use, separated by commas, "
            "like gpu,time. They are not passed to SLURM.",
        },
    )
    python: Optional[str] = field(
        default=None,
        metadata={
            "help": "Shell command for Python on the nodes, for example in a container "
            "[the Python that runs Snakemake].",
        },
    )
    setup: Optional[str] = field(
        default=None,
        metadata={
            "help": "Shell command that a job runs first, like `module load cuda`; if it fails, "
            "the job fails."
        },
    )
    wckey: Optional[str] = field(
        default=None,
        metadata={"help": "Workload characterization key of the jobs, where SLURM requires one."},
    )

    def __post_init__(self) -> None:
        _check_choice("cluster", self.cluster, CLUSTERS)
        _check_choice("on-interrupt", self.on_interrupt, ON_INTERRUPT)
        _check_choice("keep-logs", self.keep_logs, KEEP_LOGS)
        _check_minimum("signal-delay", self.signal_delay, 5)
        _check_minimum("max-requeues", self.max_requeues, 0)
        _check_minimum("max-stalls", self.max_stalls, 1)
        _check_minimum("poll-interval", self.poll_interval, 0.05)
        _check_minimum("status-interval", self.status_interval, 1)
        _check_minimum("submit-timeout", self.submit_timeout, 0)
        _check_minimum("default-runtime", self.default_runtime, 1)
        _check_minimum("keep-logs-days", self.keep_logs_days, 0)


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
