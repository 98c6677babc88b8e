"""Overhead of tracking, and speed of tables from a large store, each against MLflow alone.

`python benchmarks/results.py` prints three things. Points a second that `smt sync` sends, against
`log_metric` one by one and against MLflow's asynchronous logging, as it is and with a buffer of a
second (MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS=1), into SQLite and through a server.
Then, with 1,000 runs of 300 epochs and 8 metrics that `smt sync` sent from journals on disk (or,
with `--rows`, whose metrics were put into the database by SQL, for only reading is measured), how
long `smt tables` takes, against asking MLflow's client run by run and metric by metric. And what a
training step pays for journal and heartbeat, against a step of the demo's model.
"""

import argparse
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from engine import ONE, Repeated, bare_loop_seconds

from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.load import load_project
from smt.config.project import Project
from smt.datasets import manifest
from smt.engine.progress import Progress
from smt.report.collect import collect
from smt.runs import provenance, record
from smt.runs.atomic import read_json, write_json
from smt.runs.heartbeat import Heartbeat
from smt.runs.journal import Journal, Position
from smt.runs.paths import Layout, bundled_params
from smt.tracking import sync as sync_module
from smt.tracking.client import Point, RemoteRun, TrackingClient, configure, prepare
from smt.tracking.sync import sync
from smt.tracking.view import read_views

METRICS = ("train/loss", "train/lr", "train/grad_norm", "eval/top1", "eval/top5", "eval/loss")
"""Of a journal's line; with `system/images_per_second` and `epoch` MLflow is given 8."""

KEYS = (*METRICS, "system/images_per_second", "epoch")
STEPS = 62
"""Steps of an epoch."""

BUFFERING = "MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS"
KINDS = ("smt sync", "log_metric", "log_metric, asynchronous", "log_metric, asynchronous, buffered")


class FakeRunStore:
    """A results folder with the files of runs that were not trained, and params with those runs."""

    def __init__(self, folder: Path, manifests: Path, runs: int, epochs: int) -> None:
        self.params = folder / "params"
        shutil.copytree(bundled_params(), self.params)
        scales = yaml.safe_load((self.params / "scales.yaml").read_text())
        experiments = len(load_project(bundled_params(), "demo").experiments)
        seeds = {"seeds": list(range(math.ceil(runs / experiments)))}
        scales["demo"] |= {**seeds, "experiments": {"*": seeds}}
        (self.params / "scales.yaml").write_text(yaml.safe_dump(scales))
        self.project = load_project(self.params, "demo")
        self.layout = Layout("demo", results=folder / "results", data=folder / "data")
        shutil.copytree(manifests, self.layout.manifest("any").parent)
        self.runs = self.project.runs[:runs]
        facts = _facts(folder / "facts")
        for number, run in enumerate(self.runs):
            _write_run(self.project, self.layout, run, facts, epochs, 70 + number % 20)

    def smt(self, *arguments: str) -> str:
        """Run the real command on this folder; return what it printed."""
        return _output(self.command(*arguments))

    def command(self, *arguments: str) -> list[str]:
        return _command(self.params, self.layout, *arguments)


def _command(params: Path, layout: Layout, *arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "smt", "--params", str(params),
        "--results", str(layout.results), "--data", str(layout.data), *arguments,
    ]  # fmt: skip


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def make_manifests(folder: Path) -> Path:
    """Make the demo data in `folder`; return where their manifests are."""
    layout = Layout("demo", results=folder / "results", data=folder / "data")
    for key in manifest.keys(load_project(bundled_params(), "demo")):
        for action in ("make", "manifest"):
            _output(_command(bundled_params(), layout, "data", action, key))
    return layout.manifest("any").parent


def _facts(folder: Path) -> dict[str, Any]:
    """Return what an attempt writes into its provenance, of this machine."""
    return {
        "git": provenance.git_state(folder).as_json(),
        "packages": provenance.packages(),
        "hardware": provenance.hardware([]).as_json(),
        "created": time.time(),
        "attempts": [{"started": time.time(), "host": "here"}],
    }


def _write_run(
    project: Project, layout: Layout, run: Run, facts: dict[str, Any], epochs: int, top1: float
) -> None:
    """Write the files of a finished run: provenance, a line of the journal an epoch, numbers."""
    digests = manifest.digests(project, layout, run)
    name = fingerprint.fingerprint(project, run, digests)
    experiment, work_dir = project.experiments[run.experiment], layout.work_dir(run, name)
    common = {
        "experiment": run.experiment, "seed": run.seed, "scale": "demo", "fingerprint": name,
    }  # fmt: skip
    names = {"task": experiment.task, "model": experiment.model, "recipe": experiment.recipe,
             "dataset": project.dataset_of(run.experiment), "group": experiment.group}  # fmt: skip
    write_json(
        work_dir / record.PROVENANCE,
        {
            **facts,
            **common,
            "params": fingerprint.content(project, run, digests),
            "names": names,
            "environment": {"world_size": 1, "threads": 1, "device": "cpu", "precision": "fp32"},
            "data": digests,
            "parent": None,
        },
    )
    journal = Journal(work_dir, Position())
    for epoch in range(1, epochs + 1):
        loss = 7 * math.exp(-epoch / epochs) + run.seed / 100
        now = top1 * (1 - math.exp(-6 * epoch / epochs))
        values = (loss, 1e-3 / epoch, 1.0, now, (now + 100) / 2, loss)
        metrics = dict(zip(METRICS, values, strict=True))
        journal.append(STEPS * epoch, epoch, metrics, {"system/images_per_second": 800.0})
    journal.close()
    final = {key.removeprefix("eval/"): metrics[key] for key in METRICS if key.startswith("eval/")}
    numbers = {
        "task": "classify", "epochs": epochs, "steps": STEPS * epochs,
        "images": 64 * STEPS * epochs, "wall_seconds": 60.0, "finished": time.time() + 1,
    }  # fmt: skip
    digest = {"weights_sha256": "ab" * 32}
    write_json(layout.metrics(run), {**common, **numbers, **digest, "metrics": final})
    write_json(layout.evaluation(run), {**common, **digest, "metrics": final, "images": 1000})


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def uri_of(uri: str | None) -> Iterator[None]:
    """Let MLFLOW_TRACKING_URI be `uri`."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if uri is not None:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@contextmanager
def mlflow_server(store: FakeRunStore) -> Iterator[str]:
    """Serve the folder's database by `smt ui`; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        store.command("ui", "--port", str(port)),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not _answers(f"{address}/health"):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(process.args)} ended with {process.returncode}")
            time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def rates(
    folder: Path, manifests: Path, runs: int, epochs: int, sample_points: int, rounds: int
) -> None:
    """Print points a second of each way of logging, and the ratio of `smt sync` to it."""
    for where in ("SQLite", "mlflow server"):
        rates_by_kind: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for round_ in range(rounds):
            store = FakeRunStore(folder / f"{where.split()[0]}{round_}", manifests, runs, epochs)
            if where == "SQLite":
                measure_round(store, None, sample_points, rates_by_kind)
            else:
                with mlflow_server(store) as address:
                    measure_round(store, address, sample_points, rates_by_kind)
        for kind, values in rates_by_kind.items():
            pairs = zip(rates_by_kind["smt sync"], values, strict=True)
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            print(
                f"{where}: {kind}: {statistics.median(values):.0f} points/s, "
                f"smt sync {ratio:.1f} times as fast"
            )


def measure_round(
    store: FakeRunStore, uri: str | None, sample_points: int, rates_by_kind: dict[str, list[float]]
) -> None:
    with uri_of(uri):
        prepare(store.layout, store.layout.tracking_uri())
        outcome: list[int] = []
        took = seconds(lambda: outcome.append(sync(store.project, store.layout).points))
        rates_by_kind["smt sync"].append(outcome[0] / took)
        rates_by_kind["log_metric"].append(_log_one_by_one(store.layout, sample_points))
        rates_by_kind["log_metric, asynchronous"].append(
            _log_asynchronously(store.layout, 10 * sample_points)
        )
        os.environ[BUFFERING] = "1"
        buffered = _log_asynchronously(store.layout, 160 * sample_points)
        rates_by_kind["log_metric, asynchronous, buffered"].append(buffered)
        del os.environ[BUFFERING]


def _log_one_by_one(layout: Layout, points: int) -> float:
    client, run_id = _client(layout)

    def log() -> None:
        for step in range(points):
            client.log_metric(run_id, KEYS[step % 8], 0.5, 1000 + step, step // 8)

    took = seconds(log)
    _require_all(client, run_id, points)
    return points / took


def _log_asynchronously(layout: Layout, points: int) -> float:
    client, run_id = _client(layout)

    def log() -> None:
        futures = [
            client.log_metric(
                run_id, KEYS[step % 8], 0.5, 1000 + step, step // 8, synchronous=False
            )
            for step in range(points)
        ]
        for future in futures:
            future.wait()

    took = seconds(log)
    _require_all(client, run_id, points)
    return points / took


def _flush(client: Any) -> None:
    """Wait until what was logged asynchronously is sent, as `mlflow.flush_async_logging` does."""
    client._tracking_client.store.flush_async_logging()


def _client(layout: Layout) -> tuple[Any, str]:
    """Return a client of MLflow's, and a new run for it to log to."""
    from mlflow.tracking.client import MlflowClient

    client = MlflowClient(layout.tracking_uri())
    existing = client.get_experiment_by_name("theirs")
    experiment = existing.experiment_id if existing else client.create_experiment("theirs")
    return client, client.create_run(experiment).info.run_id


def _require_all(client: Any, run_id: str, points: int) -> None:
    stored = sum(len(client.get_metric_history(run_id, key)) for key in KEYS)
    if stored != points:
        raise RuntimeError(f"of {points} points {stored} are in MLflow")


def tables(folder: Path, manifests: Path, runs: int, epochs: int, rows: bool, rounds: int) -> None:
    """Print how long the tables of a full store take, and asking for it run by run."""
    start = time.perf_counter()
    store = FakeRunStore(folder, manifests, runs, epochs)
    print(
        f"{len(store.runs)} runs of {epochs} epochs written in {time.perf_counter() - start:.0f} s"
    )
    with uri_of(None):
        (_fill_by_rows if rows else _fill)(store)
        size = store.layout.tracking_lock.with_name("mlflow.db").stat().st_size
        start = time.perf_counter()
        output = store.smt("sync")
        took = time.perf_counter() - start
        if " 0 had something new" not in output:
            raise RuntimeError(f"the store is not what a sync would make of it: {output}")
        print(f"{size / 1e6:.0f} MB of SQLite; smt sync, with nothing new: {took:.1f} s")
        names = list(store.project.tables)
        command = [seconds(lambda: store.smt("tables", *names)) for _ in range(rounds)]
        reading = [seconds(lambda: collect(store.project, store.layout)) for _ in range(rounds)]
        _compare_reading(store, statistics.median(command), statistics.median(reading))


class RowClient(TrackingClient):
    """Puts runs straight into the tables of an SQLite file, in one transaction."""

    database: sqlite3.Connection

    def experiments(self) -> dict[str, str]:
        """Return what MLflow finds, which comes by a connection of its own."""
        self.database.commit()  # a large transaction locks the file for others
        return super().experiments()

    def _rows(self, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
        marks = ", ".join("?" for _ in columns.split(", "))
        self.database.executemany(f"insert into {table} ({columns}) values ({marks})", rows)

    def create_run(
        self, table: str, name: str, start_milliseconds: int, tags: Mapping[str, str]
    ) -> RemoteRun:
        """Make a run, as MLflow's own store does."""
        run_id, experiment = uuid.uuid4().hex, self.get_or_create_experiment(table)
        columns = (
            "run_uuid, name, source_type, source_name, entry_point_name, user_id, status, "
            "start_time, lifecycle_stage, artifact_uri, experiment_id"
        )
        row = (
            run_id, name, "UNKNOWN", "", "", "unknown", "RUNNING", start_milliseconds, "active",
            f"file:///{run_id}/artifacts", int(experiment),
        )  # fmt: skip
        self._rows("runs", columns, [row])
        self.log_batch(run_id, tags={**tags, "mlflow.runName": name})
        return RemoteRun(run_id, experiment, "RUNNING", start_milliseconds, {}, dict(tags))

    def log_batch(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Insert metrics, params and tags of a run."""
        last = {point.key: point for point in sorted(points, key=lambda point: point.step)}
        columns = "key, value, timestamp, step, run_uuid, is_nan"
        for table, chosen in (("metrics", points), ("latest_metrics", last.values())):
            self._rows(table, columns, ((*point, run_id, 0) for point in chosen))
        for table, values in (("params", params), ("tags", tags)):
            rows = [(key, value, run_id) for key, value in (values or {}).items()]
            self._rows(table, "key, value, run_uuid", rows)

    def set_status(self, run_id: str, status: str, end_milliseconds: int | None) -> None:
        self.database.execute(
            "update runs set status = ?, end_time = ? where run_uuid = ?",
            (status, end_milliseconds, run_id),
        )


def _fill_by_rows(store: FakeRunStore) -> None:
    """Do what `smt sync` does, but insert the rows by SQL."""
    uri = store.layout.tracking_uri()
    prepare(store.layout, uri)
    client = TrackingClient.from_layout(store.layout)
    for view in read_views(store.project, store.layout, store.project.order)[0]:
        client.get_or_create_experiment(view.table)
    database = sqlite3.connect(uri.removeprefix("sqlite:///"), timeout=60)
    with closing(database), database:
        RowClient.database = database
        sync_module.TrackingClient = RowClient  # type: ignore[misc]
        took = seconds(lambda: sync(store.project, store.layout))
        sync_module.TrackingClient = TrackingClient  # type: ignore[misc]
    print(f"rows put straight into the database in {took:.0f} s: only reading is measured")


def _fill(store: FakeRunStore) -> None:
    """Let `smt sync` send everything."""
    start = time.perf_counter()
    output = store.smt("sync")
    took = time.perf_counter() - start
    points = int(re.search(r"\((\d+) values\)", output)[1])  # type: ignore[index]
    print(f"smt sync: {points} points in {took:.0f} s, {points / took:.0f} points/s")


def _compare_reading(store: FakeRunStore, command: float, reading: float) -> None:
    results = collect(store.project, store.layout).runs.values()
    finished = sum(result.state == "done" for result in results)
    if finished != len(store.runs):
        raise RuntimeError(f"of {len(store.runs)} runs the tables have {finished}")
    print(
        f"smt tables: {command:.1f} s with its start, of which all {finished} runs read and "
        f"checked {reading:.2f} s"
    )
    client, _ = _client(store.layout)
    run_ids = [run["run_id"] for run in read_json(store.layout.sync_receipt)["runs"]]
    by_run = seconds(lambda: [client.get_run(run_id) for run_id in run_ids])
    print(f"get_run run by run: {by_run:.1f} s, {by_run / reading:.1f} times the reading")
    whole = by_run + seconds(
        lambda: [client.get_metric_history(run_id, key) for run_id in run_ids for key in KEYS]
    )
    print(
        f"get_run and get_metric_history run by run, metric by metric: {whole:.1f} s, "
        f"{whole / reading:.1f} times the reading, {whole / command:.1f} times smt tables"
    )


def step_overhead(steps: int, rounds: int) -> None:
    """Print the cost of heartbeat and journal a step, against a step of the demo's SMT-T."""
    interval = load_project(bundled_params(), "demo").scale.log_every
    progress = Progress("", epochs=1, epoch_images=1, ranks=ONE)
    plain, tracked, each_step = [], [], []
    for _ in range(rounds):
        plain.append(bare_loop_seconds(Repeated("demo", 64, 32, steps)) / steps)
        tracked.append(_tracking_seconds(progress, 1000 * interval, interval))
        each_step.append(_tracking_seconds(progress, 10_000, 1))
    step = statistics.median(plain)
    for steps_per_line, times in ((interval, tracked), (1, each_step)):
        cost = statistics.median(times)
        share = statistics.median(a / b for a, b in zip(times, plain, strict=True))
        print(
            f"tracking with a line every {steps_per_line} steps: {1e6 * cost:.1f} us a step, "
            f"{100 * share:.3f} % of a step of {1000 * step:.1f} ms"
        )


def _tracking_seconds(progress: Progress, steps: int, interval: int) -> float:
    """Return seconds a step that the trainer spends on tracking."""
    with tempfile.TemporaryDirectory() as name:
        journal, heartbeat = Journal(Path(name), Position()), Heartbeat(Path(name))
        metrics = dict.fromkeys(("train/loss", "train/lr", "train/grad_norm"), 0.123456789)
        start = time.perf_counter()
        for step in range(1, steps + 1):
            heartbeat.write(step)
            if step % interval == 0:
                journal.append(step, 0, metrics, progress.system())
        took = time.perf_counter() - start
        journal.close()
        heartbeat.close()
    return took / steps


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="runs of the full store [1000]")
    parser.add_argument("--epochs", type=int, default=300, help="epochs of each [300]")
    parser.add_argument("--sent-runs", type=int, default=8, help="runs a rate is taken of [8]")
    parser.add_argument("--points", type=int, default=120, help="points logged one by one [120]")
    parser.add_argument("--steps", type=int, default=100, help="training steps timed [100]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison [3]")
    parser.add_argument(
        "--rows", action="store_true", help="fill the full store by SQL, in minutes less"
    )
    parser.add_argument(
        "--manifests", type=Path, help="folder of the demo data's manifests, if made"
    )
    parser.add_argument("--only", choices=("steps", "rates", "tables"), help="measure one thing")
    arguments = parser.parse_args()
    parts = (arguments.only,) if arguments.only else ("steps", "rates", "tables")
    torch.set_num_threads(1)
    configure()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "steps" in parts:
            step_overhead(arguments.steps, arguments.rounds)
        manifests, epochs = arguments.manifests or make_manifests(folder / "demo"), arguments.epochs
        if "rates" in parts:
            points, rounds = arguments.points, arguments.rounds
            rates(folder, manifests, arguments.sent_runs, epochs, points, rounds)
        if "tables" in parts:
            rows, rounds = arguments.rows, arguments.rounds
            tables(folder / "full", manifests, arguments.runs, epochs, rows, rounds)


if __name__ == "__main__":
    main()
