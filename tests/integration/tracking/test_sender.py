"""Sending while runs train: whatever the server does, training does not notice, nothing is lost."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections import Counter

import pytest

from smt.errors import UserError
from smt.layout import Layout
from smt.params import load_project
from smt.spec import Run
from smt.tracking import sender
from smt.tracking.mlflow_sync import sync
from smt.tracking.server import Server
from smt.tracking.view import views
from tests.helpers.run_files import RunFiles, S, T
from tests.helpers.tracking_servers import failing_line, mlflow_server, postgres
from tests.helpers.trainings import RUN_OF_DEMO, command, edit_demo, make_project, smt, work_dir
from tests.helpers.waiting import PATIENCE, wait_for

TINY = Run(experiment=T, seed=0)
SMALL = Run(experiment=S, seed=0)


def points_of(view):
    return [*view.points, *view.final_points, *view.evaluation_points]


def assert_shown(project, layout, uri=None):
    """Assert that MLflow has one run for each of the files', with every point of it once."""
    server = Server(uri or layout.tracking_uri(), f"smt-{layout.scale}", layout.artifacts)
    remote = {run.tags["smt.fingerprint"]: run for run in server.runs()}
    found = views(project, layout, project.order)
    assert len(server.runs()) == len(remote) == len(found) > 0
    for view in found:
        run = remote[view.fingerprint]
        sent = Counter(p for key in run.metrics for p in server.history(run.run_id, key))
        assert sent == Counter(points_of(view))
        assert run.status == view.status


# --- beside a real training ------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, demo_data):
    made = make_project(tmp_path, demo_data)
    edit_demo(made, lambda demo: demo["recipes"]["imagenet1k"]["schedule"].update(epochs=6))
    return made


def training(project, uri=None):
    """Start a training that sends; give its process."""
    environment = {**os.environ, "SMT_SEND": "1", "SMT_SEND_SECONDS": "0.3"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    if uri:
        environment["MLFLOW_TRACKING_URI"] = uri
    return subprocess.Popen(
        command("train", RUN_OF_DEMO), cwd=project, env=environment, stderr=subprocess.DEVNULL
    )


def layout_of(project):
    return Layout("demo", project / "results", project / "data")


def params_of(project):
    return load_project(project / "params", "demo")


def is_over(project):
    """Whether no sender is at work: its log is closed and its lock is free."""
    return is_free(layout_of(project))


def is_free(layout):
    with sender._elected(layout) as mine:
        return mine


def test_a_curve_grows_while_its_run_trains_and_is_whole_after(project, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    process, layout = training(project), layout_of(project)
    seen = set()

    def is_done():
        if (project / "results" / "mlflow.db").exists():
            for run in Server.of(layout).runs():
                if process.poll() is None:
                    seen.add((run.status, run.metrics.get("epoch")))
        return process.poll() is not None

    wait_for(is_done, every=0.2)
    assert process.returncode == 0
    wait_for(lambda: is_over(project))
    assert {status for status, _ in seen} >= {"RUNNING"}
    assert len(seen) > 2  # it was seen to grow
    assert_shown(params_of(project), layout)


def test_training_does_not_notice_a_server_that_never_answers(project, tmp_path):
    with mlflow_server(tmp_path / "server") as server, failing_line(server) as line:
        line.state = "hang"
        process = training(project, line.uri)
        assert process.wait(timeout=PATIENCE) == 0
        assert line.requests > 0
        assert Server(server.uri, "smt-demo", tmp_path).runs() == []
        log = (work_dir(project) / "train.log").read_text()
        assert "MLflow" not in log and "WARNING" not in log
        line.state = "ok"
        wait_for(lambda: is_over(project))
        environment = {"MLFLOW_TRACKING_URI": line.uri}
        smt(project, "sync", env=environment)
        assert_shown(params_of(project), layout_of(project), server.uri)
        again = smt(project, "sync", env=environment)
        assert "0 had something new (0 values)" in again.stdout


def test_a_server_killed_and_a_training_killed_on_the_way(project, tmp_path):
    """The journal is cut back to the checkpoint, and MLflow shows one run with the same curve."""
    layout, params = layout_of(project), params_of(project)
    with mlflow_server(tmp_path / "server") as server:

        def shown():
            return [run.metrics.get("epoch", 0) for run in Server.of(layout).runs()]

        os.environ["MLFLOW_TRACKING_URI"] = server.uri
        try:
            process = training(project, server.uri)
            wait_for(lambda: shown() and shown()[0] > 0)
            server.kill()
            wait_for(lambda: "next try in" in layout.sender_log.read_text())
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
            server.start()
            wait_for(lambda: is_over(project))
            process = training(project, server.uri)
            assert process.wait(timeout=PATIENCE) == 0
            wait_for(lambda: is_over(project))
            sync(params, layout)
            assert_shown(params, layout)
            (run,) = Server.of(layout).runs()
            assert run.tags["smt.attempts"] == "2"
            assert run.tags["smt.requeues"] == "1"
        finally:
            del os.environ["MLFLOW_TRACKING_URI"]


# --- whatever the line does ------------------------------------------------------------------


@pytest.mark.parametrize("state", ["slow", "error", "lost"])
def test_points_arrive_once_over_a_bad_line(files, tmp_path, monkeypatch, state):
    monkeypatch.setattr("smt.tracking.server.BATCH", 50)
    work_dir, lines = files.run(TINY), files.lines(TINY, 4)
    with mlflow_server(tmp_path / "server") as server, failing_line(server) as line:
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
        assert_shown(files.project, files.layout, server.uri)


def test_the_sender_goes_on_when_the_server_is_back_and_ends_with_its_process(files, monkeypatch):
    """Its pauses grow while nothing answers; the last round comes after the process has ended."""
    slept, answers = [], iter([UserError("down"), UserError("down"), "sent 3", None])

    def once():
        answer = next(answers)
        if isinstance(answer, UserError):
            raise answer
        return answer

    process = subprocess.Popen(["sleep", "2.5"])
    real = sender._outlasts
    monkeypatch.setattr(
        sender, "_outlasts", lambda *given: slept.append(given[1]) or real(given[0], 1.0)
    )
    try:
        said = list(sender.watch(files.layout, once, 5, process.pid))
    finally:
        process.wait()
    assert said == ["down; next try in 10 s", "down; next try in 20 s", "sent 3"]
    assert slept == [10, 20, 5]


def test_one_sender_of_a_folder(files):
    files.finish(TINY)
    other = subprocess.Popen(files.command("sync", "--watch", "--scale", "demo"))
    try:
        wait_for(files.layout.sync_receipt.exists)
        done = files.smt("sync", "--watch", "--scale", "demo")
        assert "another sender is at work" in done.stdout
        assert sender.start(files.layout) is None
    finally:
        other.kill()
        other.wait()


def test_a_sender_that_is_stopped_is_gone_and_leaves_no_half_file(files):
    files.finish(TINY)
    process = sender.start(files.layout)
    wait_for(files.layout.sender_log.exists)
    time.sleep(1)
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
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  (once, before there are many)
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
    found = [failures.get(timeout=5) for _ in range(failures.qsize())]
    return found + [f"exit {p.exitcode}" for p in processes if p.exitcode]


def many_runs(folder, count):
    files = RunFiles(folder, seeds=tuple(range(count)))
    for seed in range(count):
        files.finish(Run(experiment=T, seed=seed), 90 + seed / 8, epochs=1)
    return files


def test_forty_processes_at_once_on_a_file_that_is_not_there(tmp_path, monkeypatch):
    """As forty jobs of one results folder: SQLite, one writer at a time."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    files = many_runs(tmp_path, 40)
    assert at_once(40, lambda _: sync(files.project, files.layout)) == []
    assert_shown(files.project, files.layout)


@pytest.mark.parametrize("through", ["server", "database"])
def test_forty_processes_at_once_on_an_empty_postgresql(tmp_path, monkeypatch, through):
    """Forty results folders, so that no lock of a folder keeps them apart."""
    files = many_runs(tmp_path / "all", 40)
    layouts = []
    for seed in range(40):
        own = Layout("demo", tmp_path / f"results{seed}", files.layout.data)
        layouts.append(own)
        run = Run(experiment=T, seed=seed)
        shutil.copytree(files.layout.root / "data", own.root / "data")
        shutil.copytree(files.layout.run_dir(run), own.run_dir(run))
    project = files.project  # loaded once, before there are forty

    def send(number):
        for _ in range(5):
            try:
                return sync(project, layouts[number])
            except UserError as error:  # one server, forty at once: some may have to come again
                if "does not answer" not in str(error):
                    raise
        return sync(project, layouts[number])

    def send_all(uri):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert at_once(40, send) == []
        assert_shown(project, files.layout, uri)

    with postgres(tmp_path / "postgres") as database:
        if through == "database":
            send_all(database)
        else:
            with mlflow_server(tmp_path / "server", database) as server:
                send_all(server.uri)


def test_two_hosts_that_send_the_same_run_at_once(tmp_path, files, monkeypatch):
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
    with mlflow_server(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)

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
        assert_shown(files.project, files.layout, server.uri)
