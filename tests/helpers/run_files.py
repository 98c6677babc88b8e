"""Files of runs as the trainer writes them, with metrics that a test chooses."""

import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import yaml

from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.load import load_project
from smt.config.metrics import HEADLINES
from smt.config.project import Project
from smt.config.yaml import YamlFile
from smt.datasets.manifest import (
    CLASS_MAP,
    ClassMapManifest,
    Manifest,
    Split,
    digests,
    manifest_path,
)
from smt.runs.atomic import write_json
from smt.runs.paths import Layout
from smt.tracking.client import TrackingClient
from tests.helpers import ROOT, forkserver

CREATED = 1_700_000_000.0
T, S, B = "imagenet1k_smt_tiny", "imagenet1k_smt_small", "imagenet1k_smt_base"
PARENT, CHILD = "imagenet22k_smt_large", "imagenet1k_smt_large_224"


class RunFiles:
    """The results folder of one scale, below `folder`, with its own copy of params."""

    def __init__(self, folder: Path, scale: str = "demo", seeds: tuple[int, ...] = (0,)) -> None:
        self.folder, self.scale = folder, scale
        self.params = folder / "params"
        if not self.params.exists():
            shutil.copytree(ROOT / "params", self.params)
        overlays = YamlFile(self.params / "scales.yaml").data[scale].get("experiments", {})
        self.change("scales.yaml", list(seeds), scale, "seeds")
        if overlays:
            overlays = {name: {**it, "seeds": list(seeds)} for name, it in overlays.items()}
            self.change("scales.yaml", overlays, scale, "experiments")
        self.layout = Layout(scale, folder / "results", folder / "data")
        self.manifests()

    @cached_property
    def project(self) -> Project:
        return load_project(self.params, self.scale)

    def change(self, file: str, value: object, *keys: str | int) -> None:
        """Set one value of a file of params."""
        data = YamlFile(self.params / file).data
        entry = data
        for key in keys[:-1]:
            entry = entry[key]
        entry[keys[-1]] = value
        (self.params / file).write_text(yaml.dump(data, Dumper=yaml.CSafeDumper))
        self.__dict__.pop("project", None)

    def manifests(self, content: str = "") -> None:
        """Write the manifests of all data sets; other `content` gives other digests."""
        for name, dataset in self.project.datasets.items():
            path = manifest_path(self.layout, name)
            counts = {"train": dataset.train_images, "val": dataset.val_images}
            manifest = Manifest(
                dataset=name,
                content="bytes",
                digest=f"{name}{content}",
                classes=tuple(f"c{index}" for index in range(dataset.classes)),
                splits={
                    split: Split(images=n, total_bytes=n, per_class=(), listed_in="", sha256="")
                    for split, n in counts.items()
                    if n
                },
                folder=path.parent,
            )
            write_json(path, manifest.model_dump(mode="json"))
        for name, entry in self.project.class_maps.items():
            rows = ClassMapManifest(source=entry.source, target=entry.target, digest=name, rows=())
            path = manifest_path(self.layout, f"{CLASS_MAP}{name}")
            write_json(path, rows.model_dump(mode="json"))

    def fingerprint(self, run: Run) -> str:
        return fingerprint.fingerprint(self.project, run, digests(self.project, self.layout, run))

    def work_dir(self, run: Run) -> Path:
        return self.layout.work_dir(run, self.fingerprint(run))

    def begin(self, run: Run, *, attempts: int = 1, created: float = CREATED) -> Path:
        """Write the provenance of a run and return its work folder."""
        project, work_dir = self.project, self.work_dir(run)
        experiment = project.experiments[run.experiment]
        data = digests(project, self.layout, run)
        parent = project.parent(run)
        write_json(
            work_dir / "provenance.json",
            {
                "fingerprint": self.fingerprint(run),
                "scale": self.scale,
                "experiment": run.experiment,
                "seed": run.seed,
                "params": fingerprint.content(project, run, data),
                "names": {
                    "task": experiment.task,
                    "model": experiment.model,
                    "recipe": experiment.recipe,
                    "dataset": project.dataset_of(run.experiment),
                    "group": experiment.group,
                },
                "git": {"commit": "c0ffee" * 6 + "c0ff", "dirty": False, "diff_sha256": None},
                "packages": {"torch": "2.14.1", "timm": "1.0.31", "numpy": "2.4.0"},
                "hardware": {"host": "node1", "processor": "a CPU", "cores": 2, "gpus": []},
                "environment": {
                    "world_size": 1, "threads": 1, "device": "cpu", "precision": "fp32"
                },
                "data": data,
                "parent": parent and {
                    "experiment": parent.experiment,
                    "seed": parent.seed,
                    "fingerprint": self.fingerprint(parent),
                    "weights_sha256": "ab" * 32,
                },
                "created": created,
                "attempts": [
                    {"started": created + 60 * n, "host": "node1", "pid": 1,
                     "resumed_at_step": 10 * n, "slurm_job_id": str(100 + n)}
                    for n in range(attempts)
                ],
            },
        )  # fmt: skip
        return work_dir

    def lines(self, run: Run, epochs: int, top1: float = 95.0) -> list[dict]:
        """Return the journal of a run of `epochs` epochs, whose last has this top-1.

        For a detector `top1` is the box AP, for a segmenter the mIoU.
        """
        project = self.project
        steps, every = project.steps_per_epoch(run.experiment), project.scale.log_every
        validated = project.datasets[project.dataset_of(run.experiment)].val_images > 0
        lines = []
        for step in range(1, epochs * steps + 1):
            loss = 2.5 * math.exp(-step / (4 * steps)) + 0.01 * run.seed
            epoch, remainder = divmod(step, steps)
            if step % every == 0:
                metrics = {"train/loss": loss, "train/lr": 1e-3, "train/grad_norm": 1.0}
                lines.append({"step": step, "epoch": (step - 1) // steps, "metrics": metrics})
            if not remainder:
                metrics = {"train/loss": loss} if step % every else {}
                if validated:
                    now = top1 - 20 * (epochs - epoch) / epochs
                    metrics |= self._evaluation(run, now, loss, final=epoch == epochs)
                lines.append({"step": step, "epoch": epoch, "metrics": metrics})
        return lines

    def _evaluation(self, run: Run, score: float, loss: float, *, final: bool) -> dict[str, float]:
        """Return the metrics of an evaluation; the final one is at several scales, too."""
        values = {HEADLINES[self.project.experiments[run.experiment].task]: score, "loss": loss}
        return {
            f"eval/{name}": values.get(name, (score + 100) / 2)
            for name in self.project.metrics_of(run.experiment)
            if final or not name.endswith("_ms")
        }

    def write_journal(self, work_dir: Path, lines: list[dict], *, timed: int | None = None) -> None:
        """Write a journal of these lines, with times of the first `timed` of them, or of all."""
        (work_dir / "journal.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        times = work_dir / "times.jsonl"
        first = len(times.read_text().splitlines()) if times.exists() else 0
        with times.open("a") as file:
            for number in range(first, len(lines) if timed is None else timed):
                entry = {
                    "line": number,
                    "time": CREATED + 1.25 * (number + 1),
                    "metrics": {"system/images_per_second": 800.0 + number},
                }
                file.write(json.dumps(entry) + "\n")

    def run(self, run: Run, epochs: int = 2) -> Path:
        """Write the files of a run that trains; return its work folder."""
        work_dir = self.begin(run)
        self.write_journal(work_dir, self.lines(run, epochs))
        return work_dir

    def fail(self, run: Run, message: str) -> None:
        work_dir = self.begin(run)
        failure = {"message": message, "step": 7, "time": CREATED + 30}
        write_json(work_dir / "failure.json", failure)

    def finish(
        self, run: Run, top1: float = 95.0, *, epochs: int = 2, evaluate: bool = True
    ) -> Path:
        """Write the files of a finished run, with its evaluation; return its work folder."""
        work_dir = self.begin(run)
        lines = self.lines(run, epochs, top1)
        self.write_journal(work_dir, lines)
        last = lines[-1]["metrics"]
        names = self.project.metrics_of(run.experiment)
        metrics = {name: last[f"eval/{name}"] for name in names if f"eval/{name}" in last}
        common = {
            "experiment": run.experiment,
            "seed": run.seed,
            "scale": self.scale,
            "fingerprint": self.fingerprint(run),
            "weights_sha256": "ab" * 32,
        }
        steps = lines[-1]["step"]
        write_json(
            self.layout.metrics(run),
            {
                **common,
                "task": self.project.experiments[run.experiment].task,
                "metrics": metrics or {"train_loss": last["train/loss"]},
                "epochs": epochs,
                "steps": steps,
                "images": steps * 64,
                "wall_seconds": 61.5,
                "finished": CREATED + 1.25 * len(lines) + 1,
            },
        )
        if evaluate and metrics:
            write_json(self.layout.evaluation(run), {**common, "metrics": metrics, "images": 1000})
        return work_dir

    def finish_all(self, epochs: int = 2) -> None:
        for number, run in enumerate(self.project.runs):
            self.finish(run, 90 + number / 8, epochs=epochs)

    def write_sizes(self) -> None:
        """Write sizes of both scales; only those of SMT-T and SMT-S are the real ones."""
        real = {"smt_tiny": (11_506_536, 2.3802, 2.4613, 2.399),
                "smt_small": (22_550_952, 4.6569, 4.8388, 4.689)}  # fmt: skip
        for scale in ("paper", "demo"):
            project, models = load_project(self.params, scale), {}
            for number, (name, model) in enumerate(project.models.items()):
                params, *macs = real.get(name, (10_000_000 + number, 2.0, 2.1, 2.05))
                counts = dict(
                    zip(
                        ("conv_linear", "attention", "reported"),
                        (round(value * 1e9) for value in macs),
                        strict=True,
                    )
                )
                resolutions = ("224", "384") if scale == "paper" else ("32", "56")
                models[name] = {
                    "title": model.title,
                    "params": params,
                    "macs": dict.fromkeys(resolutions, counts),
                }
            for number, (name, system) in enumerate(project.systems.items()):
                counts = {"conv_linear": 200 * 10**9, "attention": 210 * 10**9,
                          "reported": (205 + number) * 10**9}  # fmt: skip
                models[name] = {
                    "title": name,
                    "params": 40_000_000 + number,
                    "macs": {system.resolution: counts},
                }
            write_json(Layout(scale, self.layout.results).sizes, models)

    def smt(self, *arguments: str, check: bool = True, **options) -> subprocess.CompletedProcess:
        """Run the real command on this folder."""
        options = {"cwd": Path.cwd(), "env": dict(os.environ), **options}
        done = forkserver.run("smt", *self.arguments(*arguments), **options)
        assert not check or done.returncode == 0, done.stderr
        return done

    def start(self, *arguments: str, **files) -> forkserver.Process:
        """Start the real command on this folder; `files` are its `stdout` and `stderr`."""
        arguments = self.arguments(*arguments)
        return forkserver.start("smt", *arguments, cwd=self.folder, env=dict(os.environ), **files)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "smt", *self.arguments(*arguments)]

    def arguments(self, *arguments: str) -> list[str]:
        """Return arguments of `smt`, after the options with this folder's paths."""
        return [
            "--params", str(self.params), "--results", str(self.layout.results),
            "--data", str(self.folder / "data"), *arguments,
        ]  # fmt: skip


def remote(files: RunFiles, run):
    """Return the one MLflow run with the present fingerprint of a run."""
    fingerprint = files.fingerprint(run)
    remote_runs = TrackingClient.from_layout(files.layout).runs()
    (remote_run,) = [it for it in remote_runs if it.tags.get("smt.fingerprint") == fingerprint]
    return remote_run


def rows(files: RunFiles, run_id: str) -> list[tuple]:
    """Return the rows of a run in the database's table of metrics, in order."""
    with sqlite3.connect(files.layout.results / "mlflow.db") as database:
        return database.execute(
            "select step, key, value, timestamp from metrics where run_uuid = ? "
            "order by step, key, timestamp",
            (run_id,),
        ).fetchall()


def expected_rows(lines: list[dict], created: float) -> list[tuple]:
    """Return the rows that MLflow must have of journal lines of RunFiles, in order."""
    result = set()
    for number, line in enumerate(lines):
        at = round((created + 1.25 * (number + 1)) * 1000)
        values = {
            **line["metrics"],
            "system/images_per_second": 800.0 + number,
            "epoch": line["epoch"],
        }
        result |= {(line["step"], key, float(value), at) for key, value in values.items()}
    return sorted(result, key=lambda row: (row[0], row[1], row[3]))
