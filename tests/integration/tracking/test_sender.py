"""Sending while runs train: whatever the server does, training does not notice, nothing is lost."""

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
from smt.tracking.client import Server
from smt.tracking.sync import sync
from smt.tracking.view import views
from testbed.waiting import PATIENCE, wait_for
from tests.helpers import pause
from tests.helpers.run_files import RunFiles, S, T
from tests.helpers.tracking_servers import empty_database, failing_line, mlflow_server
from tests.helpers.trainings import RUN_OF_DEMO, said, smt, start, work_dir

TINY = Run(experiment=T, seed=0)
SMALL = Run(experiment=S, seed=0)


def points_of(view):
    return [*view.points, *view.final_points, *view.evaluation_points]


def assert_shown(project, layout, uri=None):
    """Assert that MLflow has one run for each of the files', with every point of it once."""
    server = Server(uri or layout.tracking_uri(), f"smt-{layout.scale}", layout.artifacts)
    remote = {run.tags["smt.fingerprint"]: run for run in server.runs()}
    found, damages = views(project, layout, project.order)
    assert not damages
    assert len(server.runs()) == len(remote) == len(found) > 0
    for view in found:
        run = remote[view.fingerprint]
        sent = Counter(p for key in run.metrics for p in server.history(run.run_id, key))
        assert sent == Counter(points_of(view))
        assert run.status == view.status


# --- beside a real training ------------------------------------------------------------------


def training(project, uri=None, steps=()):
    """Start a training that sends, and that stops at each of `steps`; give its process."""
    uri = {"MLFLOW_TRACKING_URI": uri} if uri else {}
    environment = {"SMT_SEND": "1", "SMT_SEND_SECONDS": "0.3", **uri}
    return start(project, "train", RUN_OF_DEMO, env=environment, prepare=pause.at_steps(*steps))


def layout_of(project):
    return Layout("demo", project / "results", project / "data")


def params_of(project):
    return load_project(project / "params", "demo")


def sender_of(training):
    """Return the process that sends what a training writes; the training has begun."""
    children = psutil.Process(training.pid).children()
    (process,) = (each for each in children if "--while-pid" in each.cmdline())
    return process


def await_end(process):
    """Wait for the end of a process that is nobody's child any more."""
    with contextlib.suppress(psutil.NoSuchProcess):
        wait_for(lambda: process.status() == psutil.STATUS_ZOMBIE or not process.is_running())


def is_free(layout):
    """Whether a sender may begin."""
    with sender._elected(layout) as mine:
        return mine


def test_a_curve_grows_while_its_run_trains_and_is_whole_after(small_project, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    layout = layout_of(small_project)

    def last_shown():
        """Return the step of the last loss that MLflow shows of the run, which is under way."""
        if not (layout.results / "mlflow.db").exists():
            return None
        server = Server.of(layout)
        for run in server.runs():
            assert run.status == "RUNNING"
            if points := server.history(run.run_id, "train/loss"):
                return points[-1].step
        return None

    with training(small_project, steps=(6, 16)) as process:
        for step in (6, 16):  # its journal has a line every second step
            pause.await_stop(process, lambda: said(small_project))
            wait_for(lambda step=step: last_shown() == step, last_shown, every=0.2)
            sends = sender_of(process)
            process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=PATIENCE) == 0, said(small_project)
    await_end(sends)
    assert_shown(params_of(small_project), layout)


@pytest.mark.servers
def test_training_does_not_notice_a_server_that_never_answers(small_project, mlflow, tmp_path):
    with failing_line(mlflow) as line:
        line.state = "hang"
        with training(small_project, line.uri, steps=(6,)) as process:
            pause.await_stop(process, lambda: said(small_project))
            wait_for(lambda: line.requests > 0)
            sends = sender_of(process)
            process.send_signal(signal.SIGCONT)
            assert process.wait(timeout=PATIENCE) == 0, said(small_project)
        assert Server(mlflow.uri, "smt-demo", tmp_path).runs() == []
        log = (work_dir(small_project) / "train.log").read_text()
        assert "MLflow" not in log and "WARNING" not in log
        line.state = "ok"
        await_end(sends)
        environment = {"MLFLOW_TRACKING_URI": line.uri}
        smt(small_project, "sync", env=environment)
        assert_shown(params_of(small_project), layout_of(small_project), mlflow.uri)
        again = smt(small_project, "sync", env=environment)
        assert "0 had something new (0 values)" in again.stdout


@pytest.mark.slow
@pytest.mark.servers
def test_a_server_killed_and_a_training_killed_on_the_way(small_project, tmp_path, monkeypatch):
    """The journal is cut back to the checkpoint, and MLflow shows one run with the same curve."""
    layout, params = layout_of(small_project), params_of(small_project)
    with mlflow_server(tmp_path / "server") as server:

        def shown():
            return [run.metrics.get("epoch", 0) for run in Server.of(layout).runs()]

        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        with training(small_project, server.uri, steps=(16,)) as process:
            pause.await_stop(process, lambda: said(small_project))
            wait_for(lambda: shown() and shown()[0] > 0, every=0.5)
            server.kill()
            wait_for(lambda: "next try in" in layout.sender_log.read_text())
            sends = sender_of(process)
            process.kill()
        server.start()
        await_end(sends)
        with training(small_project, server.uri, steps=(16,)) as process:
            pause.await_stop(process, lambda: said(small_project))
            sends = sender_of(process)
            process.send_signal(signal.SIGCONT)
            assert process.wait(timeout=PATIENCE) == 0, said(small_project)
        await_end(sends)
        sync(params, layout)
        assert_shown(params, layout)
        (run,) = Server.of(layout).runs()
        assert run.tags["smt.attempts"] == "2"
        assert run.tags["smt.requeues"] == "1"


# --- whatever the line does ------------------------------------------------------------------


@pytest.mark.servers
@pytest.mark.parametrize("state", ["slow", "error", "lost"])
def test_points_arrive_once_over_a_bad_line(files, mlflow, monkeypatch, state):
    monkeypatch.setattr("smt.tracking.client.BATCH", 50)
    work_dir, lines = files.run(TINY), files.lines(TINY, 4)
    with failing_line(mlflow) as line:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", line.uri)
        failures = 0
        for part in range(1, 5):
            files.write_journal(work_dir, lines[: len(lines) * part // 4])
            for line.state in ("ok", state) if part % 2 else (state, "ok"):
                try:
                    sync(files.project, files.layout)
                except UserError as error:
                    assert "\n" not in str(error)
                    failures += 1
        assert (failures > 0) == (state != "slow")
        line.state = "ok"
        sync(files.project, files.layout)
        assert_shown(files.project, files.layout, mlflow.uri)


def test_the_sender_goes_on_when_the_server_is_back_and_ends_with_its_process(files, monkeypatch):
    """Its pauses grow while nothing answers; the last round comes after the process has ended."""
    slept, answers = [], iter([UserError("down"), UserError("down"), "sent 3", None])

    def once():
        answer = next(answers)
        if isinstance(answer, UserError):
            raise answer
        return answer

    def outlasts(waited, seconds):
        """Wait not so long, but in the third round for as long as the process takes to end."""
        slept.append(seconds)
        if len(slept) < 3:
            return real(waited, 0.01)
        process.kill()
        return real(waited, PATIENCE)

    process = subprocess.Popen(["sleep", "infinity"])
    real = sender._outlasts
    monkeypatch.setattr(sender, "_outlasts", outlasts)
    try:
        said = list(sender.watch(files.layout, once, 5, process.pid))
    finally:
        process.kill()
        process.wait()
    assert said == ["down; next try in 10 s", "down; next try in 20 s", "sent 3"]
    assert slept == [10, 20, 5]


def test_one_sender_of_a_folder(files):
    files.finish(TINY)
    with files.start("sync", "--watch", "--scale", "demo"):
        wait_for(files.layout.sync_receipt.exists)
        done = files.smt("sync", "--watch", "--scale", "demo")
        assert "another sender is at work" in done.stdout
        assert sender.start(files.layout) is None


def test_a_sender_that_is_stopped_is_gone_and_leaves_no_half_file(files):
    files.finish(TINY)
    process = sender.start(files.layout)
    wait_for(files.layout.tracking_lock.exists)  # it has begun to send
    sender.stop(process)
    assert process.poll() is not None
    assert is_free(files.layout)
    assert list(files.layout.results.rglob("*.tmp")) == []
    sender.stop(None)


def test_a_sender_that_cannot_be_started_is_a_warning(files, read_only_folder, caplog):
    assert sender.start(Layout("demo", read_only_folder / "results")) is None
    assert "smt sync --scale demo" in caplog.text


# --- many at once ----------------------------------------------------------------------------


def at_once(count, work):
    """Call `work(number)` in that many processes at the same instant; return what fails."""
    import mlflow.store.tracking.sqlalchemy_store  # once, before there are many
    import mlflow.tracking.client  # noqa: F401

    context = multiprocessing.get_context("fork")
    gate, failures = context.Barrier(count), context.Queue()

    def enter(number):
        gate.wait()
        try:
            work(number)
        except BaseException as error:
            failures.put(f"{number}: {error!r}")

    processes = [context.Process(target=enter, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = [failures.get(timeout=PATIENCE) for _ in range(failures.qsize())]
    return found + [f"exit {p.exitcode}" for p in processes if p.exitcode]


def many_runs(folder, count):
    files = RunFiles(folder, seeds=tuple(range(count)))
    for seed in range(count):
        files.finish(Run(experiment=T, seed=seed), 90 + seed / 8, epochs=1)
    return files


many = pytest.mark.parametrize("count", [8, pytest.param(40, marks=pytest.mark.slow)])


@many
def test_processes_at_once_on_a_file_that_is_not_there(tmp_path, monkeypatch, count):
    """As forty jobs of one results folder: SQLite, one writer at a time."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    files = many_runs(tmp_path, count)
    assert at_once(count, lambda _: sync(files.project, files.layout)) == []
    assert_shown(files.project, files.layout)


@many
@pytest.mark.servers
@pytest.mark.parametrize("through", ["server", "database"])
def test_processes_at_once_on_an_empty_postgresql(
    tmp_path, monkeypatch, postgresql, through, count
):
    """Results folders of their own, so that no lock of a folder keeps them apart."""
    files = many_runs(tmp_path / "all", count)
    layouts = []
    for seed in range(count):
        own = Layout("demo", tmp_path / f"results{seed}", files.layout.data)
        layouts.append(own)
        run = Run(experiment=T, seed=seed)
        shutil.copytree(files.layout.root / "data", own.root / "data")
        shutil.copytree(files.layout.run_dir(run), own.run_dir(run))
    project = files.project  # loaded once, before there are many

    def send(number):
        for _ in range(5):
            try:
                return sync(project, layouts[number])
            except UserError as error:  # one server, all at once: some may have to come again
                if "does not answer" not in str(error):
                    raise
        return sync(project, layouts[number])

    def send_all(uri):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert at_once(count, send) == []
        assert_shown(project, files.layout, uri)

    database = empty_database(postgresql, f"{through}{count}")
    if through == "database":
        send_all(database)
    else:
        with mlflow_server(tmp_path / "server", database) as server:
            send_all(server.uri)


@pytest.mark.servers
def test_two_hosts_that_send_the_same_run_at_once(tmp_path, files, mlflow, monkeypatch):
    """Folders that see the same files and share no lock, while the journal grows."""
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
            except UserError as error:  # the other one has deleted the twin that it made
                assert json.dumps(str(error))
            time.sleep(0.05)

    assert at_once(3, work) == []
    files.write_journal(work_dir, lines)
    for host in hosts:
        sync(files.project, host)
    assert_shown(files.project, files.layout, mlflow.uri)
