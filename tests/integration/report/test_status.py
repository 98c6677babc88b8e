"""`smt status`: what it says of runs that are done, under way, in a queue, or in trouble."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import click
import pytest

from smt import dag
from smt.cluster import queue
from smt.config.experiments import Run
from smt.report import status_text
from smt.report.status import collect
from smt.runs import workdir
from smt.runs.atomic import read_json, write_json
from smt.runs.checkpoint_files import FOLDER, CheckpointName
from smt.runs.paths import Layout
from testbed.waiting import PATIENCE, wait_for
from tests.helpers import pause
from tests.helpers.run_files import CHILD, PARENT, B, RunFiles, S, T
from tests.helpers.trainings import await_step, output_of, run_dir, start, stop_at

HEADS, HALF = "ablation_heads_1", "ablation_stage3_half"
SEGMENTER = "ade20k_upernet_smt_base"
EPOCHS = 6
STEPS = EPOCHS * 62
"""Of a run on the demo's 4000 images in global batches of 64, whatever the demo's own budget."""

HOLD = """
import signal, sys
from pathlib import Path
from smt.runs.lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


def run(experiment, seed=0):
    return Run(experiment=experiment, seed=seed)


@pytest.fixture
def files(tmp_path):
    files = RunFiles(tmp_path)
    files.change("scales.yaml", EPOCHS, "demo", "recipes", "imagenet1k", "schedule", "epochs")
    return files


@pytest.fixture
def no_slurm(tmp_path, monkeypatch):
    """A PATH without SLURM's programs."""
    monkeypatch.setenv("PATH", str(tmp_path))


def look(files, *experiments):
    """Return what is said of each run, as JSON has it."""
    output = json.loads(status_text.as_json(collect(files.project, files.layout, experiments)))
    return {each["run"].removesuffix("-seed0"): each for each in output["runs"]}


def lines(files):
    """Return state and details of each run as they are printed, its lines joined."""
    found, name = {}, ""
    printed = click.unstyle(status_text.text(collect(files.project, files.layout)))
    for line in printed.split("\n\n")[0].splitlines():
        if line.startswith(" "):
            found[name] += f" {line.strip()}"
        else:
            name, _, rest = line.partition("-seed0")
            found[name] = " ".join(rest.split())
    return found


def checkpoint(work_dir, step):
    folder = work_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    (folder / f"step-{step:010d}-epoch-00001-{'ab' * 32}.safetensors").touch()


def pulse(work_dir, step, ago, now=None):
    at = (now or time.time()) - ago
    (work_dir / "pulse").write_text(f"{step:012d} {at:017.6f}\n")


def began(work_dir, ago, *, now=None, resumed_at=0, **more):
    """Say that the last attempt began so many seconds ago."""
    started = (now or time.time()) - ago
    provenance = read_json(work_dir / "provenance.json")
    provenance["attempts"][-1].update(started=started, resumed_at_step=resumed_at, **more)
    write_json(work_dir / "provenance.json", provenance)


@contextmanager
def trained(work_dir):
    """Hold a work folder as a training does; yield the process."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(work_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        began(work_dir, 0, pid=holder.pid, slurm_job_id=None)
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def timed_journal(work_dir, entries, now):
    """Write a journal of (step, seconds before now, metrics)."""
    journal, times = [], []
    for number, (step, ago, metrics) in enumerate(entries):
        journal.append({"step": step, "epoch": step // 62, "metrics": metrics})
        times.append({"line": number, "time": now - ago, "metrics": {}})
    for name, records in (("journal", journal), ("times", times)):
        text = "".join(json.dumps(each) + "\n" for each in records)
        (work_dir / f"{name}.jsonl").write_text(text)


# --- from files alone ----------------------------------------------------------------------------


def test_every_state_from_files_alone(files, no_slurm):
    files.finish(run(T), 95.25)
    files.fail(run(S), "loss is not finite at step 7 of 372")
    checkpoint(files.run(run(B)), 62)
    files.run(run(HEADS))
    output = lines(files)
    assert len(output) == len(files.project.experiments)
    assert output[T] == "done top1 95.25"
    assert output[S] == "failed loss is not finite at step 7 of 372"
    assert output[B] == "stopped step 62 of 372"
    assert output[HEADS] == "stopped before its first checkpoint"
    assert output[PARENT] == "not started"
    assert output[CHILD] == f"not started waits for {PARENT}-seed0, which is not started"
    assert output[SEGMENTER] == f"not started waits for {B}-seed0, which is stopped"


def test_without_slurm_there_is_one_line_of_warning_and_a_summary(files, no_slurm):
    files.finish(run(T))
    checkpoint(files.run(run(B)), 62)
    done = files.smt("status")
    assert done.stderr == (
        "smt: SLURM is not reachable (squeue: not on this machine); states are read from files "
        "only\n"
    )
    *_, hint, notice, hours, summary = done.stdout.splitlines()
    assert hint.startswith("stopped: goes on with")
    assert hint.endswith(": smt train EXPERIMENT --seed N --scale demo")
    assert "not comparable with the paper" in notice
    assert hours.startswith("to go: about 1 ") and hours.endswith(
        " GPU-hours on NVIDIA A100 SXM4 80 GB"
    )
    runs = len(files.project.runs)
    left = f"{runs - 1} to go (1 stopped, {runs - 2} not started)"
    assert summary == f"{runs} runs: 1 done, {left}"


def test_hours_left_shrink_by_what_is_done(files, no_slurm):
    def hours():
        return collect(files.project, files.layout, [S, B]).gpu_hours_left

    before = hours()
    assert before > 0
    checkpoint(files.run(run(B)), STEPS // 2)
    half = hours()
    files.finish(run(B))
    alone = hours()
    assert before > half > alone > 0
    files.finish(run(S))
    assert hours() == 0


def test_a_failed_parent_is_named(files, no_slurm):
    files.fail(run(PARENT), "disk is full")
    assert lines(files)[CHILD] == f"not started waits for {PARENT}-seed0, which has failed"


def test_data_that_are_missing_are_named_once_with_their_remedy(files, no_slurm):
    files.finish(run(T))
    files.layout.manifest("imagenet1k").unlink()
    output = lines(files)
    assert output[S] == "not started waits for data: imagenet1k"
    assert output[T] == "done top1 95.00; no telling of which data, without manifests: imagenet1k"
    assert output[PARENT] == "not started"
    whole = status_text.text(collect(files.project, files.layout))
    assert whole.count("run: smt data manifest imagenet1k --scale demo\n") == 1


def test_runs_of_former_params_are_outdated_or_not_started(files, no_slurm):
    files.finish(run(T))
    checkpoint(files.run(run(S)), 62)
    was, half = files.fingerprint(run(T))[:12], files.work_dir(run(S)).name
    files.change("scales.yaml", 7, "demo", "recipes", "imagenet1k", "schedule", "epochs")
    output = lines(files)
    assert output[T] == (
        f"outdated params, data or code version changed since it was trained (as {was}); "
        "train it again"
    )
    assert output[S] == f"not started half done with other params or data: {half} at step 62"


@pytest.mark.parametrize("content", ["{", "[]", '{"metrics": {}}'])
def test_a_run_whose_numbers_cannot_be_read_has_failed(files, no_slurm, content):
    path = files.layout.metrics(run(T))
    path.parent.mkdir(parents=True)
    path.write_text(content)
    found = look(files)[T]
    assert found["state"] == "failed" and found["reason"].startswith(f"{path}: ")


# --- a training under way ------------------------------------------------------------------------


def test_the_pace_is_that_of_the_last_epoch(files, no_slurm):
    work_dir = files.begin(run(T))
    with trained(work_dir) as holder:
        now = time.time()
        began(work_dir, 1000, now=now)
        evaluated = {"eval/top1": 81.25, "eval/loss": 0.5}
        # 62 steps took 500 s at first, then 31 s; the beat is of step 134.
        timed_journal(
            work_dir, [(62, 500, evaluated), (72, 46, {}), (82, 41, {}), (130, 17, {})], now
        )
        pulse(work_dir, 134, ago=15, now=now)
        found, output = look(files)[T], lines(files)[T]
    assert (found["state"], found["step"], found["steps"]) == ("running", 134, STEPS)
    assert (found["epoch"], found["epochs"]) == (3, 6)
    assert found["steps_per_second"] == pytest.approx((134 - 72) / (46 - 15), rel=1e-3)
    assert found["images_per_second"] == pytest.approx(64 * 2, rel=1e-3)
    assert found["seconds_left"] == pytest.approx((STEPS - 134) / 2, rel=1e-3)
    assert 15 <= found["seconds_since_step"] < 45
    host = os.uname().nodename
    assert output == (
        "running step 134 of 372, epoch 3 of 6; 128 images/s; 2 min left; top1 81.25 so far; "
        f"process {holder.pid} on {host}"
    )


@pytest.mark.parametrize(("last", "mean", "workers"), [(10.0, 30, None), (52.0, 51, 2), (0, 25, 0)])
def test_a_training_that_waits_for_its_data_is_told_what_to_do(
    files, no_slurm, last, mean, workers
):
    work_dir, waited = files.begin(run(T)), "system/data_wait_percentage"
    files.change("scales.yaml", workers, "demo", "workers")
    with trained(work_dir):
        now = time.time()
        began(work_dir, 300, now=now)
        records = [(10, 250, {waited: 99.0}), (70, 99, {waited: 50.0}), (120, 40, {waited: last})]
        timed_journal(work_dir, [*records, (124, 20, {"eval/top1": 81.25})], now)
        pulse(work_dir, 124, ago=5, now=now)
        found, said = look(files)[T], lines(files)[T]
        printed = status_text.text(collect(files.project, files.layout))
    assert found["data_wait"] == pytest.approx(mean / 100)
    assert f" images/s; waits for data {mean} % of its time; " in said
    hints = [line for line in printed.splitlines() if line.startswith("waits for data: ")]
    assert len(hints) == (workers != 0), "it reads by itself as its scale says"
    for hint in hints:
        assert "1 run, over 10 % of the time" in hint
        assert "`workers`" in hint and hint.endswith("smt data pack")


def test_a_training_whose_data_keeps_up_is_told_nothing_of_it(files, no_slurm):
    work_dir = files.begin(run(T))
    with trained(work_dir):
        now = time.time()
        began(work_dir, 300, now=now)
        timed_journal(work_dir, [(70, 99, {"system/data_wait_percentage": 4.0})], now)
        pulse(work_dir, 80, ago=5, now=now)
        found = look(files)[T]
        printed = status_text.text(collect(files.project, files.layout))
    assert found["data_wait"] == pytest.approx(0.04)
    assert "data" not in printed


def test_the_pace_of_a_young_attempt_is_its_own(files, no_slurm):
    work_dir = files.begin(run(T), attempts=3)
    with trained(work_dir):
        now = time.time()
        began(work_dir, 25, now=now, resumed_at=100)
        # Written by the attempt before, and again by this one: the first time is kept.
        timed_journal(work_dir, [(90, 4000, {}), (110, 3000, {})], now)
        pulse(work_dir, 120, ago=5, now=now)
        found, output = look(files)[T], lines(files)[T]
    assert found["steps_per_second"] == pytest.approx(1, rel=1e-3)
    assert output.endswith("attempt 3")


def test_a_training_without_recent_steps_is_marked(files, no_slurm):
    work_dir = files.begin(run(T))
    with trained(work_dir):
        began(work_dir, 1000)
        pulse(work_dir, 100, ago=720)
        assert "; no step for 12 min; process" in lines(files)[T]
        assert look(files)[T]["seconds_left"] is None
        # 100 steps in 150 s: ten take as long as the beat is old.
        began(work_dir, 165)
        pulse(work_dir, 10, ago=62)
        assert "images/s" in lines(files)[T]


def test_an_attempt_before_its_first_step_is_starting(files, no_slurm):
    work_dir = files.begin(run(T))
    checkpoint(work_dir, 62)
    pulse(work_dir, 70, ago=1)
    with trained(work_dir):
        # The beat is of the attempt before, and older than this one.
        began(work_dir, 0, resumed_at=62)
        assert "running step 62 of 372, epoch 2 of 6; starting; process" in lines(files)[T]
        # It holds the folder, and has not written down yet that it is there.
        began(work_dir, 100, pid=1, slurm_job_id=None)
        assert "running step 62 of 372, epoch 2 of 6; starting; process" in lines(files)[T]
        os.utime(work_dir / "lock", (time.time() - 600, time.time() - 600))
        assert "; no step yet after 10 min; process" in lines(files)[T]


def test_a_lock_of_an_ended_process_does_not_count(files, no_slurm):
    work_dir = files.begin(run(T))
    with trained(work_dir):
        pulse(work_dir, 70, ago=0)
        assert look(files)[T]["state"] == "running"
    pulse(work_dir, 70, ago=0)
    assert look(files)[T]["state"] == "stopped"


@pytest.mark.parametrize(("ago", "state"), [(2, "running"), (100, "stopped")])
def test_on_another_host_heartbeats_count(files, no_slurm, ago, state):
    work_dir = files.begin(run(T))
    began(work_dir, 200)
    write_json(work_dir / "lock", {"host": "far-away", "pid": 7})
    pulse(work_dir, 50, ago=ago)
    found = look(files)[T]
    assert found["state"] == state
    assert found["place"] == ("job 100 on far-away" if state == "running" else "")


def test_reading_a_lock_does_not_change_it(files, no_slurm):
    work_dir = files.begin(run(T))
    with trained(work_dir) as holder:
        path = work_dir / "lock"
        path.chmod(0o444)
        before = path.read_bytes(), path.stat().st_mtime_ns
        assert [workdir.is_locked(path) for _ in range(3)] == [True] * 3
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before
        holder.kill()
        holder.wait()
        assert workdir.is_locked(path) is False
    assert workdir.is_locked(work_dir / "nothing") is False


def test_checkpoints_are_recognised_by_their_names(tmp_path):
    names = [CheckpointName(99, 1, "a" * 64), CheckpointName(1_000_000, 2, "b" * 64),
             CheckpointName(5, 0, "c" * 64)]  # fmt: skip
    assert workdir.newest_checkpoint(tmp_path) is None
    (tmp_path / FOLDER).mkdir()
    for name in names:
        (tmp_path / FOLDER / str(name)).touch()
    (tmp_path / FOLDER / ".step-2000000000.77.tmp").touch()
    assert workdir.newest_checkpoint(tmp_path) == 1_000_000


class RealProject(RunFiles):
    """What RunFiles has, in a folder where trainings are real."""

    def __init__(self, folder):
        self.folder, self.scale, self.params = folder, "demo", folder / "params"
        self.layout = Layout("demo", folder / "results", folder / "data")


def test_a_real_training_runs_stops_goes_on_off_track_and_is_done(small_project, no_slurm):
    project = RealProject(small_project)
    # More than it can reach, from the end of its first epoch of 12 steps on.
    point = {"at": 0.25, "metric": "top1", "value": 100, "tolerance": 0, "source": "assumed"}
    project.change("trajectory.yaml", {"demo": {T: [point]}}, "points")
    project.change("scales.yaml", 3, "demo", "recipes", "imagenet1k", "schedule", "epochs")
    assert look(project)[T]["state"] == "not started"
    assert stop_at(small_project, 5) == 75
    stopped = look(project)[T]
    assert (stopped["state"], stopped["attempts"], stopped["steps"]) == ("stopped", 1, 36)
    assert 5 <= stopped["step"] < 12

    with start(small_project, "train", T, prepare=pause.at_step(26)) as second:
        pause.await_stop(second, lambda: output_of(small_project))
        running = look(project)[T]
        second.send_signal(signal.SIGCONT)
        assert second.wait() == 0, output_of(small_project)
    assert (running["state"], running["attempts"], running["step"]) == ("running", 2, 26)
    assert running["place"] == f"process {second.pid} on {os.uname().nodename}"
    assert running["images_per_second"] == pytest.approx(8 * running["steps_per_second"])
    assert running["seconds_left"] == pytest.approx(10 / running["steps_per_second"])
    assert (running["off_track"]["epoch"], running["off_track"]["low"]) == (2, 100)
    done = look(project)[T]
    assert (done["state"], done["step"], done["seconds_left"]) == ("done", 36, None)
    assert done["off_track"] is None
    assert done["metrics"] == read_json(project.layout.metrics(run(T)))["metrics"]


# --- the command ---------------------------------------------------------------------------------


def test_experiments_restrict_it_and_a_wrong_one_is_refused(files, no_slurm):
    assert set(look(files, S, CHILD)) == {S, CHILD}
    done = files.smt("status", "imagenet1k_smt_tny", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean imagenet1k_smt_tiny" in done.stderr


def test_it_loads_nothing_heavy(files, no_slurm):
    code = (
        "import sys; from smt.commands.status import command; "
        "command(['--scale', 'demo'], standalone_mode=False); print(*sys.modules)"
    )
    environment = {
        **os.environ,
        "SMT_PARAMS": str(files.params),
        "SMT_RESULTS": str(files.layout.results),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    *_, modules = done.stdout.splitlines()
    loaded = {name.split(".")[0] for name in modules.split()}
    assert loaded.isdisjoint({"torch", "timm", "mlflow", "pandas", "matplotlib", "snakemake"})


def test_lines_keep_to_100_columns(tmp_path, no_slurm):
    files = RunFiles(tmp_path, "paper")
    long = "the disk is full; " * 20
    for experiment in files.project.order[::2]:
        files.fail(run(experiment), long)
    out = click.unstyle(status_text.text(collect(files.project, files.layout)))
    assert out.count("the disk is full") > 100
    assert max(map(len, out.splitlines())) <= 100


def test_no_line_ends_between_a_number_and_its_unit(files, no_slurm):
    work_dir = files.begin(run(T))
    with trained(work_dir):
        began(work_dir, 20)
        pulse(work_dir, 100, ago=10)
        status = collect(files.project, files.layout, [T])
    for width in range(60, 120):
        assert re.search(r"\d images/s;", status_text.text(status, width))


def on_terminal(arguments, **environment):
    """Return what a command writes to a terminal."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        arguments, stdout=follower, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
    ) as process:
        os.close(follower)
        output = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            output += part
        process.wait()
    os.close(leader)
    return output.decode()


def test_colours_are_for_terminals(files, no_slurm):
    files.finish(run(T))
    asked = files.command("status", T)
    coloured, plain = "\x1b[32mdone", f"{T}-seed0  done"
    assert coloured in on_terminal(asked, NO_COLOR="")
    assert plain in on_terminal(asked, NO_COLOR="1")
    assert plain in files.smt("status", T).stdout


@contextmanager
def watching(files, before="true"):
    """Start `smt status --watch` from a shell, after what `before` does there; end it."""
    command = shlex.join(files.command("status", T, "--watch", "0.1"))
    watch = subprocess.Popen(
        ["/bin/sh", "-c", f"{before}; exec {command}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield watch
    finally:
        watch.kill()
        watch.communicate()


def test_watching_goes_on_until_it_is_interrupted(files, no_slurm):
    def await_line(start):
        return next(line for line in watch.stdout if line.startswith(start))

    with watching(files) as watch:
        assert "not started" in await_line(T)
        files.finish(run(T), 93.5)
        while "top1 93.50" not in await_line(T):
            pass
        watch.send_signal(signal.SIGINT)
        _, errors = watch.communicate(timeout=PATIENCE)
    assert watch.returncode == 0
    assert "Ctrl-C" not in errors


def test_watching_warns_where_it_cannot_be_interrupted(files, no_slurm):
    """As in what a script starts in the background: its shell lets it ignore SIGINT."""
    with watching(files, "trap '' INT") as watch:
        output = watch.stderr.readline()
        watch.send_signal(signal.SIGINT)
        assert output.startswith("smt: Ctrl-C (SIGINT) is ignored")
        assert output.endswith(f": kill {watch.pid}\n")
        for _ in range(2):  # it goes on
            assert next(line for line in watch.stdout if line.startswith(T))
        watch.terminate()
        assert watch.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"),
     (47.9 * 3600, "47.9 h"), (60 * 3600, "2.5 d")],
)  # fmt: skip
def test_spans_are_in_their_largest_unit(seconds, text):
    assert status_text.span(seconds) == text


# --- from SLURM's queue --------------------------------------------------------------------------


@pytest.fixture
def slurm(cluster, monkeypatch):
    """The cluster, which this process's programs find as well; no job is left behind."""
    for name, value in cluster.environment().items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.run("scancel", "--me", check=False)
    wait_for(lambda: not cluster.run("squeue", "-h", "--me").stdout)


def submit(slurm, files, experiment, *options, command="sleep 600", fingerprint=None):
    """Submit a job with the comment that the DAG gives it; return its number."""
    comment = queue.comment(
        files.scale, run(experiment), fingerprint or files.fingerprint(run(experiment))
    )
    return slurm.run(
        "sbatch", "--parsable", f"--output={files.folder}/%j.out", f"--comment={comment}",
        "--requeue", f"--chdir={files.folder}", *options, f"--wrap={command}",
    ).stdout.strip()  # fmt: skip


def await_status(files, experiment, holds):
    """Look until `holds` says so of what is said of an experiment."""
    return wait_for(
        lambda: found if holds(found := look(files)[experiment]) else None,
        lambda: look(files)[experiment], every=0.2,
    )  # fmt: skip


def test_jobs_are_matched_by_their_comment(files, slurm):
    running = submit(slurm, files, T)
    held = submit(slurm, files, S, "--hold")
    later = submit(slurm, files, B, "--begin=now+2hours")
    other = submit(slurm, files, HEADS, fingerprint="0" * 64)
    broken = submit(slurm, files, HALF, command="exit 3")
    slurm.run("sbatch", f"--chdir={files.folder}", "--output=/dev/null", "--wrap=sleep 600")
    await_status(files, HALF, lambda found: found["state"] == "failed")
    await_status(files, HEADS, lambda found: "running" in found["reason"])
    await_status(files, T, lambda found: found["state"] == "running")
    found, output = look(files), lines(files)
    assert found[T]["job"]["number"] == running
    assert found[T]["place"] in (f"job {running} on n1", f"job {running} on n2")
    assert "running step 0 of 372, epoch 1 of 6; starting; job" in output[T]
    assert found[S]["job"]["number"] == held
    assert output[S] == f"queued job {held}: JobHeldUser"
    assert found[B]["job"]["start"] == pytest.approx(time.time() + 7200, abs=120)
    assert output[B].startswith(f"queued job {later}: BeginTime; may start ")
    assert output[HEADS] == f"not started job {other} (running) has other params or data"
    assert output[HALF].startswith(f"failed job {broken} failed")
    assert "not started" in output.values()  # the job without a comment is of no run


def test_a_job_that_ended_without_its_training_shows_how_it_ended(files, slurm):
    checkpoint(files.begin(run(T)), 62)
    job = submit(slurm, files, T, command="exit 3")
    await_status(files, T, lambda found: found["job"] and found["job"]["state"] == "FAILED")
    assert lines(files)[T] == f"stopped job {job} failed (NonZeroExitCode); step 62 of 372"


def test_a_real_job_is_followed_through_a_requeue(small_project, slurm):
    files = RealProject(small_project)
    files.change("scales.yaml", 1000, "demo", "recipes", "imagenet1k", "schedule", "epochs")
    train = f"exec {sys.executable} -m smt train {T} --seed 0 --checkpoint-steps 5"
    job = submit(slurm, files, T, "--mem=2000M", command=train)
    first = await_status(files, T, lambda found: (found["steps_per_second"] or 0) > 0)
    assert (first["state"], first["attempts"]) == ("running", 1)
    assert (first["job"]["number"], first["job"]["requeues"]) == (job, 0)
    await_step(run_dir(small_project), 10, Anything())
    slurm.run("scontrol", "requeue", job)
    waiting = await_status(files, T, lambda found: found["state"] == "queued")
    assert waiting["job"]["requeues"] == 1 and waiting["step"] >= 5
    assert "; 1 requeue; step " in lines(files)[T]
    second = await_status(
        files, T, lambda found: found["attempts"] == 2 and found["steps_per_second"]
    )
    assert (second["state"], second["job"]["requeues"]) == ("running", 1)
    assert second["step"] >= waiting["step"]
    assert second["place"].startswith(f"job {job} on n")


class Anything:
    """Stands for a process that is not this one's to wait for."""

    def poll(self):
        return None


def test_without_a_controller_there_is_a_warning_and_states_come_from_files(files, slurm):
    files.finish(run(T))
    slurm.controller_down()
    try:
        done = files.smt("status")
    finally:
        slurm.controller_up()
    assert done.stderr.count("\n") == 1 and "SLURM is not reachable (squeue" in done.stderr
    assert f"{T}-seed0" in done.stdout and "done         top1 95.00" in done.stdout


def test_the_dag_gives_jobs_the_comment_that_status_matches(files, monkeypatch):
    monkeypatch.setenv("SMT_PARAMS", str(files.params))
    monkeypatch.setenv("SMT_RESULTS", str(files.layout.results))
    expected = queue.comment("demo", run(T), files.fingerprint(run(T)))
    assert expected == f"smt demo {T}-seed0 {files.fingerprint(run(T))}"
    assert dag.load("demo").job_comment(run(T)) == expected
