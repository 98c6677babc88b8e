"""The JSON files of a run: a typed record a file, read and written here and nowhere else.

A key that records of old do not have has a default; one that this version does not know is kept,
so that a file which is read and written again loses nothing. The JSON is written with the keys that
were set, in alphabetical order: DVC and `smt verify` hold digests of it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smt.config.experiments import Run
from smt.errors import EXIT_TRAINING, UserError
from smt.runs import shared_folder
from smt.runs.atomic import write_json
from smt.runs.paths import Layout

PROVENANCE = "provenance.json"
FAILURE = "failure.json"
"""Both in a run's work folder."""

MAIN_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "smt-reproduction")
"""Packages whose versions MLflow and model cards show; provenance.json has all of them."""


class Record(BaseModel):
    """Values of a JSON file, or of a mapping in it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def as_json(self) -> dict[str, Any]:
        """Return the keys that were set, with those that this version does not know."""
        return self.model_dump(exclude_unset=True)


class Environment(Record):
    """The properties of the machine that decide the order of sums, and so the last bits."""

    world_size: int
    """Processes."""
    threads: int
    """Of each process."""
    device: str
    precision: str | None = None
    deterministic_algorithms: bool | None = None
    processor: str | None = None
    driver: str | None = None
    cuda: str | None = None
    cudnn: int | None = None
    nccl: str | None = None
    tf32: bool | None = None
    compiled: bool = False
    """Whether torch.compile fused the operations of each block."""

    @property
    def gpus(self) -> int:
        """GPUs in use."""
        return self.world_size if self.device == "cuda" else 0


# --- metrics.json and evaluation.json --------------------------------------------------------


class Extent(Record):
    """What identifies a file that is only appended to, once it is whole."""

    sha256: str
    bytes: int
    lines: int


class RunMetrics(Record):
    """`metrics.json`: the final numbers of a run, and digests of the files that go with them."""

    experiment: str
    seed: int
    scale: str
    fingerprint: str
    task: str
    metrics: dict[str, float]
    epochs: int
    steps: int
    images: int
    """Training images of all steps."""
    skipped_steps: int | None = None
    changes: Sequence[str] = ()
    """What has changed of the code between its attempts."""
    deviations: list[str] = []
    """How attempts were other trainings than the paper's, on fewer processes."""
    weights_sha256: str
    journal: Extent | None = None
    times: Extent | None = None
    provenance_sha256: str | None = None
    wall_seconds: float
    gpu_seconds: float | None = None
    finished: float
    """Unix seconds."""


class RunEvaluation(Record):
    """`evaluation.json`: the metrics of the exported weights, evaluated on their own."""

    experiment: str
    seed: int
    scale: str
    fingerprint: str
    weights_sha256: str
    metrics_sha256: str | None = None
    """Of `metrics.json`."""
    metrics: dict[str, float]
    images: int
    environment: Environment | None = None


# --- provenance.json and failure.json --------------------------------------------------------


class Untracked(Record):
    """Files of the checkout that git does not know."""

    count: int
    first: Sequence[str]
    """Names of some of them."""


class Git(Record):
    """The state of the checkout; every value is None outside of one."""

    commit: str | None
    dirty: bool | None
    diff_sha256: str | None = None
    """Of the difference from the commit, which is kept beside the record."""
    untracked: Untracked | None = None


class Hardware(Record):
    """The machine of the first attempt."""

    host: str
    processor: str
    system: str | None = None
    cores: int | None = None
    memory_bytes: int | None = None
    gpus: Sequence[str]
    """Names of those in use."""


class Names(Record):
    """Names in `params/` of the parts of a run when it was started."""

    task: str
    model: str
    recipe: str
    dataset: str
    group: str


class Parent(Record):
    """The run that another one starts from."""

    experiment: str
    seed: int
    fingerprint: str
    weights_sha256: str


class Attempt(Record):
    """One start of a training that came as far as its first step."""

    started: float
    """Unix seconds."""
    ended: float | None = None
    """Unix seconds: its end, or where it was last seen at work; None while that is not known."""
    resumed_at_step: int = 0
    host: str = ""
    pid: int | None = None
    slurm_job_id: str | None = None
    slurm_nodes: str | None = None
    diff_sha256: str | None = None
    environment: Environment | None = None
    recompute: bool | None = None
    """Whether blocks were computed again in backward passes."""
    deviation: str | None = None
    """How its number of processes made it another training than the paper's, if it did."""
    changes: Sequence[str] = ()
    """What of the code is not as the attempt before had it, where that was allowed."""


class Provenance(Record):
    """`provenance.json`: the provenance of a run, and all attempts at it."""

    experiment: str
    seed: int
    scale: str
    fingerprint: str
    params: dict[str, Any]
    """What the fingerprint is taken of; plain JSON, for params of old have other keys."""
    names: Names
    data: dict[str, str]
    """Digest of the manifest of each data set."""
    parent: Parent | None
    hardware: Hardware
    environment: Environment
    source: dict[str, str] = {}
    """Digest of each module that trains, and versions of libraries."""
    not_deterministic: Sequence[str] = ()
    git: Git
    packages: Mapping[str, str | None]
    created: float
    """Unix seconds."""
    attempts: Sequence[Attempt] = Field(min_length=1)
    given_up: dict[str, Any] | None = None
    """Set where it was left half done for a run with other params."""

    @property
    def main_packages(self) -> dict[str, str | None]:
        """Version of each of `MAIN_PACKAGES` that was installed."""
        versions = {name.lower(): version for name, version in self.packages.items()}
        return {name: versions[name] for name in MAIN_PACKAGES if name in versions}

    @property
    def deviations(self) -> tuple[str, ...]:
        """How attempts were other trainings than the paper's, each once."""
        every = (attempt.deviation for attempt in self.attempts)
        return tuple(dict.fromkeys(each for each in every if each is not None))

    @property
    def diffs(self) -> tuple[str, ...]:
        """Digests of the differences from a commit that its attempts ran with."""
        digests = (self.git.diff_sha256, *(attempt.diff_sha256 for attempt in self.attempts))
        return tuple(dict.fromkeys(digest for digest in digests if digest is not None))


class Failure(Record):
    """`failure.json`: why the last attempt failed."""

    message: str
    step: int | None = None
    """Step of a failure that another attempt would repeat, such as a loss that is not finite."""
    time: float
    """Unix seconds."""
    exit_code: int = EXIT_TRAINING


# --- mlflow.json -----------------------------------------------------------------------------


class SentRun(Record):
    """A run in MLflow."""

    experiment: str
    seed: int
    fingerprint: str
    run_id: str
    experiment_id: str
    status: str


class SyncReceipt(Record):
    """`mlflow.json`: which run is which MLflow run, as the last sync left it."""

    tracking_uri: str
    family: str
    experiments: dict[str, str]
    """MLflow's id of each of its experiments."""
    runs: Sequence[SentRun]


# --- index/*.json ----------------------------------------------------------------------------


class IndexEntry(Record):
    """`index/EXPERIMENT-seedN.json`: the fingerprint that DVC's stage of a run depends on."""

    experiment: str
    seed: int
    fingerprint: str


# --- reading and writing ---------------------------------------------------------------------


class DamagedRecord(UserError):
    """A record that cannot be read; the message names the file, the fault and the remedy."""


R = TypeVar("R", bound=BaseModel)


def read(kind: type[R], path: Path, remedy: str) -> R | None:
    """Return the record in a file, or None where there is no such file.

    Raises:
        DamagedRecord: it cannot be read, is no JSON, or not a record of this kind.
    """
    try:
        # Strict: what is written here has the right types, so another type is damage.
        return kind.model_validate_json(shared_folder.read_bytes(path), strict=True)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise DamagedRecord(f"{path}: no permission to read it; run: chmod u+r {path}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DamagedRecord(f"{path}: cannot be read ({reason}); {remedy}") from None
    except ValidationError as error:
        raise DamagedRecord(f"{path}: {_fault(path, error)}; {remedy}") from None


def _fault(path: Path, error: ValidationError) -> str:
    """Return the fault in the content of a record, in a phrase."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "json_invalid":
        cause = str(first["ctx"]["error"])
        if not path.read_bytes().strip():
            return "is empty"
        return f"is cut off ({cause})" if cause.startswith("EOF") else f"is no JSON ({cause})"
    if not key:
        return "holds no mapping of keys to values"
    if first["type"] == "missing":
        return f"has no {key}"
    return f"{key}: {first['msg'].replace('Input should', 'should', 1)}"


def write(path: Path, record: Record) -> None:
    """Write a record to a file, whole or not at all."""
    write_json(path, record.as_json())


def read_metrics(layout: Layout, run: Run) -> RunMetrics | None:
    """Return the final numbers of a run, of whatever fingerprint; None while there are none.

    Raises:
        DamagedRecord: the file is damaged.
    """
    remedy = (
        "bring it back (dvc checkout), or remove it and go on from the last checkpoint: "
        f"{train_command(layout, run)}"
    )
    return read(RunMetrics, layout.metrics(run), remedy)


def read_evaluation(layout: Layout, run: Run) -> RunEvaluation | None:
    """Return the evaluation of a run's exported weights; None while there is none.

    Raises:
        DamagedRecord: the file is damaged.
    """
    command = f"smt evaluate {run.experiment} --seed {run.seed} --scale {layout.scale}"
    return read(RunEvaluation, layout.evaluation(run), f"remove it and run: {command}")


def read_provenance(work_dir: Path) -> Provenance | None:
    """Return the provenance of the run of a work folder; None before its first step.

    Raises:
        DamagedRecord: the file is damaged.
    """
    remedy = f"move {work_dir} aside and train the run again: smt train"
    return read(Provenance, work_dir / PROVENANCE, remedy)


def read_failure(work_dir: Path) -> Failure | None:
    """Return why the last attempt at the run of a work folder failed; None if it did not.

    Raises:
        DamagedRecord: the file is damaged.
    """
    return read(Failure, work_dir / FAILURE, "remove it and train the run again: smt train")


def read_receipt(layout: Layout) -> SyncReceipt | None:
    """Return which run is which MLflow run; None where nothing was ever sent.

    Raises:
        DamagedRecord: the file is damaged.
    """
    command = f"smt sync --scale {layout.scale}"
    return read(SyncReceipt, layout.sync_receipt, f"remove it and run: {command}")


def read_index_entry(layout: Layout, run: Run) -> IndexEntry | None:
    """Return the fingerprint that DVC's stage of a run depends on; None before it is written.

    Raises:
        DamagedRecord: the file is damaged.
    """
    command = f"smt dvc record --scale {layout.scale}"
    return read(IndexEntry, layout.index_entry(run), f"remove it and run: {command}")


def train_command(layout: Layout, run: Run) -> str:
    """Return the command that trains a run, or goes on with it."""
    return f"smt train {run.experiment} --seed {run.seed} --scale {layout.scale}"
