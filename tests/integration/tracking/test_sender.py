"""The sender: no failure of the server slows a training or loses a point."""

import contextlib
import json
import multiprocessing
import shutil
import signal
import subprocess
import time
from collections import Counter

import psutil
import pytest

from smt.config.experiments import Run
from smt.config.load import load_project
from smt.errors import UserError
from smt.runs.paths import Layout
from smt.tracking import sender
from smt.tracking.client import TrackingClient
from smt.tracking.sync import sync
from smt.tracking.view import read_views
from testbed.waiting import PATIENCE, wait_for
from tests.helpers import pause
from tests.helpers.run_files import RunFiles, S, T
from tests.helpers.tracking_servers import empty_database, mlflow_server, unreliable_proxy
from tests.helpers.trainings import RUN_OF_DEMO, output_of, smt, start, work_dir

TINY = Run(experiment=T, seed=0)
SMALL = Run(experiment=S, seed=0)


def points_of(view):
    return [*view.points, *view.final_points, *view.evaluation_points]


def assert_in_mlflow(project, layout, uri=None):
    """Assert that MLflow has one run for each work folder, and each of its points once."""
    uri = uri or layout.tracking_uri()
    client = TrackingClient(uri, f"smt-{layout.scale}", layout.artifacts)
    remote_runs = {run.tags["smt.fingerprint"]: run for run in client.runs()}
    views, damages = read_views(project, layout, project.order)
    assert not damages
    assert len(client.runs()) == len(remote_runs) == len(views) > 0
    for view in views:
        run = remote_runs[view.fingerprint]
        points = Counter(p for key in run.metrics for p in client.history(run.run_id, key))
        assert points == Counter(points_of(view))
        assert run.status == view.status


# --- with a real training --------------------------------------------------------------------


def training(project, uri=None, steps=()):
    """Start a training with a sender, which pauses at each of `steps`; return its process."""
    uri = {"MLFLOW_TRACKING_URI": uri} if uri else {}
    environment = {"SMT_SEND": "1", "SMT_SEND_SECONDS": "0.3", **uri}
    return start(project, "train", RUN_OF_DEMO, env=environment, prepare=pause.at_steps(*steps))


def layout_of(project):
    return Layout("demo", project / "results", project / "data")


def params_of(project):
    return load_project(project / "params", "demo")


def sender_of(training):
    """Return the sender of a training that has started."""
    children = psutil.Process(training.pid).children()
    (process,) = (child for child in children if "--while-pid" in child.cmdline())
    return process


def await_end(process):
    """Wait for the end of a process whose parent has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        wait_for(lambda: process.status() == psutil.STATUS_ZOMBIE or not process.is_running())


def is_lock_free(layout):
    """Return whether no sender runs."""
    with sender._sender_lock(layout) as is_free:
        return is_free


def test_a_curve_grows_during_training_and_is_complete_after_it(small_project, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    layout = layout_of(small_project)

    def last_step():
        """Return the step of the last loss in MLflow; the run has to be RUNNING there."""
        if not (layout.results / "mlflow.db").exists():
            return None
        client = TrackingClient.from_layout(layout)
        for run in client.runs():
            assert run.status == "RUNNING"
            if points := client.history(run.run_id, "train/loss"):
                return points[-1].step
        return None

    with training(small_project, steps=(6, 16)) as process:
        for step in (6, 16):  # its journal has a line every second step
            pause.await_stop(process, lambda: output_of(small_project))
            wait_for(lambda step=step: last_step() == step, last_step, every=0.2)
            sender_process = sender_of(process)
            process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=PATIENCE) == 0, output_of(small_project)
    await_end(sender_process)
    assert_in_mlflow(params_of(small_project), layout)


@pytest.mark.servers
def test_training_does_not_notice_a_server_that_never_answers(small_project, mlflow, tmp_path):
    with unreliable_proxy(mlflow) as proxy:
        proxy.state = "hang"
        with training(small_project, proxy.uri, steps=(6,)) as process:
            pause.await_stop(process, lambda: output_of(small_project))
            wait_for(lambda: proxy.requests > 0)
            sender_process = sender_of(process)
            process.send_signal(signal.SIGCONT)
            assert process.wait(timeout=PATIENCE) == 0, output_of(small_project)
        assert TrackingClient(mlflow.uri, "smt-demo", tmp_path).runs() == []
        log = (work_dir(small_project) / "train.log").read_text()
        assert "MLflow" not in log and "WARNING" not in log
        proxy.state = "ok"
        await_end(sender_process)
        environment = {"MLFLOW_TRACKING_URI": proxy.uri}
        smt(small_project, "sync", env=environment)
        assert_in_mlflow(params_of(small_project), layout_of(small_project), mlflow.uri)
        again = smt(small_project, "sync", env=environment)
        assert "0 had something new (0 values)" in again.stdout


@pytest.mark.slow
@pytest.mark.servers
def test_server_and_training_are_killed_and_mlflow_has_the_run_once(
    small_project, tmp_path, monkeypatch
):
    """The journal is truncated to the checkpoint, and MLflow has one run with the same curve."""
    layout, params = layout_of(small_project), params_of(small_project)
    with mlflow_server(tmp_path / "server") as server:

        def epochs():
            return [
                run.metrics.get("epoch", 0) for run in TrackingClient.from_layout(layout).runs()
            ]

        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        with training(small_project, server.uri, steps=(16,)) as process:
            pause.await_stop(process, lambda: output_of(small_project))
            wait_for(lambda: epochs() and epochs()[0] > 0, every=0.5)
            server.kill()
            wait_for(lambda: "next try in" in layout.sender_log.read_text())
            sender_process = sender_of(process)
            process.kill()
        server.start()
        await_end(sender_process)
        with training(small_project, server.uri, steps=(16,)) as process:
            pause.await_stop(process, lambda: output_of(small_project))
            sender_process = sender_of(process)
            process.send_signal(signal.SIGCONT)
            assert process.wait(timeout=PATIENCE) == 0, output_of(small_project)
        await_end(sender_process)
        sync(params, layout)
        assert_in_mlflow(params, layout)
        (run,) = TrackingClient.from_layout(layout).runs()
        assert run.tags["smt.attempts"] == "2"
        assert run.tags["smt.requeues"] == "1"


# --- failures of the network ------------------------------------------------------------------


@pytest.mark.servers
@pytest.mark.parametrize("state", ["slow", "error", "lost"])
def test_points_arrive_once_over_an_unreliable_connection(files, mlflow, monkeypatch, state):
    monkeypatch.setattr("smt.tracking.client.MAX_METRICS", 50)
    work_dir, lines = files.run(TINY), files.lines(TINY, 4)
    with unreliable_proxy(mlflow) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
        failures = 0
        for part in range(1, 5):
            files.write_journal(work_dir, lines[: len(lines) * part // 4])
            for proxy.state in ("ok", state) if part % 2 else (state, "ok"):
                try:
                    sync(files.project, files.layout)
                except UserError as error:
                    assert "\n" not in str(error)
                    failures += 1
        assert (failures > 0) == (state != "slow")
        proxy.state = "ok"
        sync(files.project, files.layout)
        assert_in_mlflow(files.project, files.layout, mlflow.uri)


def test_the_sender_resumes_when_the_server_is_back_and_ends_with_its_process(files, monkeypatch):
    """Its pauses grow while nothing answers; the last sync comes after the process has ended."""
    pauses, results = [], iter([UserError("down"), UserError("down"), "sent 3", None])

    def sync_once():
        result = next(results)
        if isinstance(result, UserError):
            raise result
        return result

    def short_sleep(seconds, waited):
        """Sleep for a moment; the third time, end the process and wait for that."""
        pauses.append(seconds)
        if len(pauses) < 3:
            return sleep(0.01, waited)
        process.kill()
        return sleep(PATIENCE, waited)

    process = subprocess.Popen(["sleep", "infinity"])
    sleep = sender._sleep
    monkeypatch.setattr(sender, "_sleep", short_sleep)
    try:
        messages = list(sender.watch(files.layout, sync_once, 5, process.pid))
    finally:
        process.kill()
        process.wait()
    assert messages == ["down; next try in 10 s", "down; next try in 20 s", "sent 3"]
    assert pauses == [10, 20, 5]


def test_a_results_folder_has_one_sender(files):
    files.finish(TINY)
    with files.start("sync", "--watch", "--scale", "demo"):
        wait_for(files.layout.sync_receipt.exists)
        done = files.smt("sync", "--watch", "--scale", "demo")
        assert "another sender runs in" in done.stdout
        assert sender.start(files.layout) is None


def test_a_stopped_sender_leaves_no_process_lock_or_temporary_file(files):
    files.finish(TINY)
    process = sender.start(files.layout)
    wait_for(files.layout.tracking_lock.exists)  # its first sync has started
    sender.stop(process)
    assert process.poll() is not None
    assert is_lock_free(files.layout)
    assert list(files.layout.results.rglob("*.tmp")) == []
    sender.stop(None)


def test_a_sender_that_cannot_be_started_is_a_warning(files, read_only_folder, caplog):
    assert sender.start(Layout("demo", read_only_folder / "results")) is None
    assert "smt sync --scale demo" in caplog.text


# --- concurrency -----------------------------------------------------------------------------


def at_once(count, work):
    """Call `work(number)` in `count` processes at the same time; return their errors."""
    import mlflow.store.tracking.sqlalchemy_store  # once, before the forks
    import mlflow.tracking.client  # noqa: F401

    context = multiprocessing.get_context("fork")
    barrier, failures = context.Barrier(count), context.Queue()

    def enter(number):
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            failures.put(f"{number}: {error!r}")

    processes = [context.Process(target=enter, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    errors = [failures.get(timeout=PATIENCE) for _ in range(failures.qsize())]
    return errors + [f"exit {p.exitcode}" for p in processes if p.exitcode]


def many_runs(folder, count):
    files = RunFiles(folder, seeds=tuple(range(count)))
    for seed in range(count):
        files.finish(Run(experiment=T, seed=seed), 90 + seed / 8, epochs=1)
    return files


many = pytest.mark.parametrize("count", [8, pytest.param(40, marks=pytest.mark.slow)])


@many
def test_many_processes_create_one_sqlite_file(tmp_path, monkeypatch, count):
    """Jobs of one results folder: SQLite takes one writer at a time."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    files = many_runs(tmp_path, count)
    assert at_once(count, lambda _: sync(files.project, files.layout)) == []
    assert_in_mlflow(files.project, files.layout)


@many
@pytest.mark.servers
@pytest.mark.parametrize("through", ["server", "database"])
def test_many_processes_share_an_empty_postgresql(
    tmp_path, monkeypatch, postgresql, through, count
):
    """Each has its own results folder, so that they share no lock."""
    files = many_runs(tmp_path / "all", count)
    layouts = []
    for seed in range(count):
        layout = Layout("demo", tmp_path / f"results{seed}", files.layout.data)
        layouts.append(layout)
        run = Run(experiment=T, seed=seed)
        shutil.copytree(files.layout.root / "data", layout.root / "data")
        shutil.copytree(files.layout.run_dir(run), layout.run_dir(run))
    project = files.project  # loaded once, before the forks

    def send(number):
        for _ in range(5):
            try:
                return sync(project, layouts[number])
            except UserError as error:  # an overloaded server may time out
                if "does not answer" not in str(error):
                    raise
        return sync(project, layouts[number])

    def send_all(uri):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert at_once(count, send) == []
        assert_in_mlflow(project, files.layout, uri)

    database = empty_database(postgresql, f"{through}{count}")
    if through == "database":
        send_all(database)
    else:
        with mlflow_server(tmp_path / "server", database) as server:
            send_all(server.uri)


@pytest.mark.servers
def test_two_hosts_send_the_same_run_at_once(tmp_path, files, mlflow, monkeypatch):
    """Two results folders have the same files and share no lock, while the journal grows."""
    work_dir, lines = files.run(TINY), files.lines(TINY, 4)
    files.finish(SMALL)
    hosts = []
    for name in ("one", "other"):
        host = Layout("demo", tmp_path / name, files.layout.data)
        host.results.mkdir()
        (host.results / "demo").mkdir()
        for part in ("data", "runs"):
            (host.root / part).symlink_to(files.layout.root / part)
        hosts.append(host)
    files.write_journal(work_dir, lines[:10])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.uri)

    def work(number):
        if number == 2:
            for part in range(10, len(lines) + 1, 5):
                files.write_journal(work_dir, lines[:part])
                time.sleep(0.1)
            return
        for _ in range(6):
            try:
                sync(files.project, hosts[number])
            except UserError as error:  # the other host has deleted this one's duplicate run
                assert json.dumps(str(error))
            time.sleep(0.05)

    assert at_once(3, work) == []
    files.write_journal(work_dir, lines)
    for host in hosts:
        sync(files.project, host)
    assert_in_mlflow(files.project, files.layout, mlflow.uri)
