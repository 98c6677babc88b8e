"""Kills and events of `smt prove`, and what becomes of a training after each."""

import csv
import json
import signal
from dataclasses import replace

import psutil
import pytest

from smt.config.experiments import Run
from smt.proof import interrupt, plan
from smt.proof.interrupt import Interruption
from smt.proof.record import ProofRecord
from smt.proof.trainings import ProofFailed, Trainings
from smt.runs import heartbeat
from smt.runs.paths import Layout
from tests.helpers.ranks import AS_FORKS
from tests.helpers.trainings import RUN_OF_DEMO, edit_demo, one_line, smt

RUN = RUN_OF_DEMO
DRAW = "148"
"""A seed whose two events come early, and whose kill comes after them."""


def test_events_are_recorded_and_the_bytes_are_equal(small_project, tmp_path):
    """The training goes on through the first, and is killed by the second."""
    edit_demo(
        small_project, lambda demo: demo["recipes"]["imagenet1k"]["schedule"].update(epochs=4)
    )
    commands = (f"env > {tmp_path}/environment", "kill -KILL $SMT_PROOF_PID")
    options = ("--kills", "1", "--draw", DRAW, *(f"--event={command}" for command in commands))
    result = smt(small_project, "prove", RUN, "--scale", "demo", *options, prepare=AS_FORKS)
    assert "1 kills (1 SIGINT); 2 events; equal to the byte" in result.stdout

    path = small_project / f"results/demo/proof/{RUN}-seed0-ranks1.json"
    record = json.loads(path.read_text())
    assert ProofRecord(**record).is_equal
    assert tuple(event["command"] for event in record["events"]) == commands
    first, second = record["events"]
    assert first["ended_at"] is first["resumed_at"] is None and not first["exit_codes"]
    assert second["exit_codes"] == [-signal.SIGKILL]
    assert second["ended_at"] >= second["at_step"] >= second["resumed_at"] > 0
    assert record["resumed_at"] == [second["resumed_at"], record["kills"][0]["resumed_at"]]
    assert record["steps_lost_when_told"] == 0
    environment = set((tmp_path / "environment").read_text().splitlines())
    told = {"SMT_PROOF_RANK": 0, "SMT_PROOF_STEP": first["at_step"]}
    told["SMT_PROOF_NODE"] = first["node"]
    assert {f"{name}={value}" for name, value in told.items()} <= environment
    with (small_project / "results/demo/proof/proof_events.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(row["command"] for row in rows) == commands
    text = (small_project / "results/demo/proof/proof_events.md").read_text()
    assert text.count("went on") == 1 and text.count("ended at step") == 1


def test_an_event_whose_command_fails_is_one_line_and_ends_the_training(small_project, tmp_path):
    command = f"echo $SMT_PROOF_PID > {tmp_path}/pid; echo no such plug >&2; exit 3"
    result = smt(
        small_project, "prove", RUN, "--scale", "demo", "--kills", "0", "--event", command,
        check=False, prepare=AS_FORKS,
    )  # fmt: skip
    assert result.returncode == 2
    one_line(
        result, "--event 'echo $SMT_PROOF_PID >", "exit code 3; its last message: no such plug"
    )
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_proof_that_nothing_interrupts_is_one_line(small_project):
    result = smt(small_project, "prove", RUN, "--kills", "0", check=False)
    assert result.returncode == 2
    one_line(result, "--kills 0: nothing would interrupt", "--event COMMAND")


# --- by fake attempts ---------------------------------------------------------------------------


@pytest.fixture
def fake_trainings(tmp_path):
    """Trainings whose attempts are fakes, at step 7 of 9."""
    layout = Layout("demo", tmp_path / "results", tmp_path / "data")
    return FakeTrainings(None, layout, Run(experiment=RUN, seed=0), None, tmp_path / "proof")


class FakeTrainings(Trainings):
    """Trainings whose attempts are fakes, which end one after the other with `codes`."""

    codes = ()

    def start(self, name, ranks, number, workers):
        folder = self.layout(name).run_dir(self.run) / "work-0"
        folder.mkdir(parents=True, exist_ok=True)
        self.logs(name).mkdir(parents=True, exist_ok=True)
        heartbeat.Heartbeat(folder).write(7)
        return FakeAttempt(self.codes[number], self.folder / "end")


class FakeAttempt:
    """A fake attempt that never saves: it ends by a kill, by a file, or at once if with 0."""

    def __init__(self, codes, end):
        self.killed, self._codes, self._end = [], codes, end

    def poll(self):
        return self._codes if self.killed or self._end.exists() or not any(self._codes) else None

    def kill(self, number, rank):
        self.killed.append((number, rank))

    def place(self, rank):
        return {"SMT_PROOF_NODE": "n1", "SMT_PROOF_PID": "7"}

    def last_message(self):
        return "the last message"

    def close(self):
        pass


KILL = plan.Kill(
    step=3, signal=signal.SIGTERM, target="all ranks", moment="step", rank=0, workers=0, delay=0.0
)


def test_a_kill_waits_for_at_most_one_checkpoint(fake_trainings):
    fake_trainings.codes = [[-signal.SIGKILL]]
    planned = replace(KILL, signal=signal.SIGKILL, moment="checkpoint")
    attempt = fake_trainings.start(interrupt.NAME, 1, 0, 0)
    kill, step = Interruption(fake_trainings, 1, 0.0)._send(attempt, planned, latest=7)
    assert (kill, step) == (replace(planned, moment="step"), 7)
    assert attempt.killed == [(signal.SIGKILL, None)]


def event_that_ends(trainings):
    """Return an event at which the fake attempts end."""
    return plan.Event(step=3, command=f"touch {trainings.folder}/end", rank=0, workers=0)


@pytest.mark.parametrize("codes", [[-signal.SIGKILL], [75], [-signal.SIGTERM, 75]])
def test_an_attempt_that_an_event_ends_is_resumed(fake_trainings, codes):
    fake_trainings.codes = [codes, [0]]
    interruption = Interruption(fake_trainings, 1, 0.0)
    interruption.run([event_that_ends(fake_trainings)], steps=9)
    (result,) = interruption.results
    assert (result.codes, result.ended_at, result.node) == (codes, 7, "n1")


@pytest.mark.parametrize("codes", [[4], [1], [-signal.SIGKILL, 4]])
def test_a_rank_that_fails_after_an_event_fails_the_proof(fake_trainings, codes):
    fake_trainings.codes = [codes]
    failure = f"attempt 0: exit code {codes[-1]}, valid here: 0, 75, a signal; its last message:"
    with pytest.raises(ProofFailed, match=failure):
        Interruption(fake_trainings, 1, 0.0).run([event_that_ends(fake_trainings)], steps=9)


def test_after_an_event_a_signal_may_lose_steps(fake_trainings):
    fake_trainings.codes = [[-signal.SIGKILL], [0]]
    undisturbing = plan.Event(step=2, command="true", rank=0, workers=0)
    interruption = Interruption(fake_trainings, 1, 0.0)
    interruption.run([undisturbing, KILL], steps=9)
    event, kill = interruption.results
    assert (event.codes, event.ended_at) == ([], None)
    assert (kill.codes, kill.saves) == ([-signal.SIGKILL], False)
    with pytest.raises(ProofFailed, match="exit code -9, valid here: 0, 75; its last message"):
        Interruption(fake_trainings, 1, 0.0).run([KILL], steps=9)


@pytest.mark.parametrize("step", [3, 8], ids=["reached and ended", "not reached"])
def test_an_event_that_comes_too_late_is_not_run(fake_trainings, tmp_path, step):
    fake_trainings.codes = [[0]]
    event = plan.Event(step=step, command=f"touch {tmp_path}/run", rank=0, workers=0)
    interruption = Interruption(fake_trainings, 1, 0.0)
    interruption.run([event], steps=9)
    assert not interruption.results and not (tmp_path / "run").exists()
