"""Paths of all files. No other module builds a path below `results/`."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from smt.config.datasets import Dataset
from smt.config.experiments import Run

PICTURES_RECORD = "pictures.json"
"""Beside the pictures of a run: what they are of."""

PACKAGE = Path(__file__).resolve().parents[1]


def default_params() -> Path:
    """Return the params folder: SMT_PARAMS, else ./params, else the one beside the package."""
    if "SMT_PARAMS" in os.environ:
        return Path(os.environ["SMT_PARAMS"])
    if Path("params/models.yaml").exists():
        return Path("params")
    return bundled_params()


def bundled_params() -> Path:
    """Return the params folder that came with this installation."""
    packaged = PACKAGE / "_params"
    return packaged if packaged.exists() else PACKAGE.parent / "params"


@dataclass(frozen=True)
class EvaluationOutputs:
    """Files of an evaluation of a detector or segmenter, beside its numbers."""

    samples: Path
    """Sheet of some validation images, as annotated and as predicted."""
    predictions: Path
    """Folder of the predictions on all of them, in the format of the test servers."""


@dataclass(frozen=True)
class Layout:
    """Paths of one scale.

    A run's folder holds what the DAG declares (`metrics.json`, `model.safetensors`) and one work
    folder a fingerprint (`work-0123456789ab/`) with journal, provenance, checkpoints and logs,
    which Snakemake never deletes.
    """

    scale: str
    results: Path = Path("results")
    data: Path = Path("data")

    @classmethod
    def from_environment(cls, scale: str) -> "Layout":
        """Return the layout that SMT_RESULTS and SMT_DATA choose (defaults: results, data)."""
        return cls(
            scale=scale,
            results=Path(os.environ.get("SMT_RESULTS", "results")),
            data=Path(os.environ.get("SMT_DATA", "data")),
        )

    @property
    def root(self) -> Path:
        """Folder of everything made at this scale."""
        return self.results / self.scale

    def dataset_root(self, dataset: Dataset) -> Path:
        """Folder that holds the data set's train/ and val/."""
        return self.data / dataset.root

    def data_file(self, path: str) -> Path:
        """A file of params that is absolute or below the data folder."""
        return self.data / path

    def manifest(self, dataset: str) -> Path:
        """Manifest of a data set: counts, classes, digest."""
        return self.root / "data" / f"{dataset}.json"

    def hash_cache(self, dataset: str, how: str = "reading") -> Path:
        """SHA-256 of the files that an unfinished reading of a data set has read."""
        return self.root / "data" / f"{dataset}.{how}.txt"

    def differences(self, dataset: str) -> Path:
        """List of the files of a data set that are inconsistent with its manifest."""
        return self.root / "data" / f"{dataset}.differences.txt"

    def run_dir(self, run: Run) -> Path:
        return self.root / "runs" / run.experiment / f"seed{run.seed}"

    def metrics(self, run: Run) -> Path:
        """Final numbers of a run, its fingerprint and the digest of its weights."""
        return self.run_dir(run) / "metrics.json"

    def weights(self, run: Run) -> Path:
        return self.run_dir(run) / "model.safetensors"

    def evaluation(self, run: Run) -> Path:
        """The exported weights evaluated again, on their own."""
        return self.run_dir(run) / "evaluation.json"

    def released(self, experiment: str) -> Path:
        """Released weights, evaluated here: their numbers in the place of an experiment's."""
        return self.root / "released" / experiment / "evaluation.json"

    def samples(self, run: Run) -> Path:
        """Some validation images, as annotated and as a detector or segmenter predicts them."""
        return self.run_dir(run) / "samples.jpg"

    def predictions(self, run: Run) -> Path:
        """Folder of the predictions of a detector or segmenter on all validation images."""
        return self.run_dir(run) / "predictions"

    def evaluation_outputs(self, run: Run) -> EvaluationOutputs:
        """Samples and predictions of the evaluation of a detector or segmenter."""
        return EvaluationOutputs(self.samples(run), self.predictions(run))

    def audit(self, run: Run) -> Path:
        """Stretches of a run that were trained again, and what came of them."""
        return self.run_dir(run) / "audit.json"

    def audit_dir(self, run: Run) -> Path:
        """Folder of a stretch while it is trained again."""
        return self.run_dir(run) / "audit"

    def work_dir(self, run: Run, fingerprint: str) -> Path:
        return self.run_dir(run) / f"work-{fingerprint[:12]}"

    def record(self, run: Run) -> Path:
        """What DVC keeps of a run's work folder: journal, provenance, log, curves."""
        return self.run_dir(run) / "record"

    @property
    def manifests(self) -> Path:
        """Folder of all manifests."""
        return self.root / "data"

    def made(self, dataset: str) -> Path:
        """Marker: this machine has made a data set of the demo."""
        return self.manifests / f"{dataset}.made"

    @property
    def index(self) -> Path:
        """Folder of the fingerprint of each run, which DVC's stages depend on."""
        return self.root / "index"

    def index_entry(self, run: Run) -> Path:
        """Fingerprint of a run."""
        return self.index / f"{run}.json"

    @property
    def derived_outputs(self) -> tuple[Path, ...]:
        """All outputs derived from finished runs, and the receipt of MLflow."""
        return (
            self.tables, self.figures, self.all_pictures, self.report, self.sizes,
            self.root / "sync", self.sync_receipt,
        )  # fmt: skip

    @property
    def sizes(self) -> Path:
        """Parameters and MACs of every model."""
        return self.root / "sizes.json"

    @property
    def benchmarks(self) -> Path:
        """Folder of measured speeds, a file a machine and setting; of no scale."""
        return self.results / "benchmarks"

    @property
    def rehearsals(self) -> Path:
        """Folder of what was rehearsed on a fake GPU, a file an experiment, and its table."""
        return self.root / "rehearsal"

    def rehearsal(self, experiment: str) -> Path:
        """Peaks of memory of an experiment, and what decides them."""
        return self.rehearsals / f"{experiment}.json"

    @property
    def sync_receipt(self) -> Path:
        """Which run is which MLflow run."""
        return self.root / "mlflow.json"

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def all_pictures(self) -> Path:
        """Folder of the pictures of what classifiers compute, a folder a run."""
        return self.root / "pictures"

    def pictures(self, run: Run) -> Path:
        """Folder of the pictures of a classifier, and of their record."""
        return self.all_pictures / f"{run.experiment}-seed{run.seed}"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    @property
    def release(self) -> Path:
        """Final weights, model cards and results, packed to be published."""
        return self.root / "release"

    @property
    def proof(self) -> Path:
        """Proofs by killed trainings, and their table."""
        return self.root / "proof"

    def proof_record(self, run: Run, ranks: int | str) -> Path:
        """Result of a run that was killed on purpose, on a number of processes."""
        return self.proof / f"{run.experiment}-seed{run.seed}-ranks{ranks}.json"

    @property
    def tracking_lock(self) -> Path:
        """Held by the process that writes to MLflow: one of a results folder at a time."""
        return self.results / "mlflow.lock"

    @property
    def sender_lock(self) -> Path:
        """Held by the process that sends to MLflow while runs train: one of a scale at a time."""
        return self.root / "sender.lock"

    @property
    def sender_log(self) -> Path:
        """Log of that process on this host: two hosts never append to one file."""
        return self.root / "logs" / "sync" / f"sender-{socket.gethostname()}.log"

    @property
    def artifacts(self) -> Path:
        """Where MLflow keeps files of runs, unless a server has a place of its own."""
        return self.results / "mlflow-artifacts"

    def tracking_uri(self) -> str:
        """MLFLOW_TRACKING_URI, else an SQLite file in the results folder (absolute)."""
        database = (self.results / "mlflow.db").resolve()
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database}"
