"""`smt prove` for real on a small set: trainings killed at random end with the same bytes."""

import csv
import json
import re
import signal
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pytest

from smt.config.experiments import Run
from smt.errors import UserError
from smt.proof import plan
from smt.proof.record import ProofRecord
from smt.proof.run import Proof
from smt.runs import heartbeat
from smt.runs.paths import Layout
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.ranks import AS_FORKS
from tests.helpers.trainings import (
    RUN_OF_DEMO,
    edit_demo,
    make_small,
    make_small_project,
    one_line,
    shrink_demo,
    smt,
)

pytestmark = pytest.mark.xdist_group("proof")  # what they share is made once

RUN = RUN_OF_DEMO
SEED = "83"
"""A seed whose few kills have nearly every kind, with an early one during a checkpoint."""


@pytest.fixture(
    scope="module", params=["by the command", pytest.param("by the DAG", marks=pytest.mark.slow)]
)
def proof_project(request, tmp_path_factory):
    """A project after proofs of a run on one and on two processes, and their output.

    By the command the trainings are forks, by the DAG new processes.
    """
    if request.param == "by the command":
        small_data = request.getfixturevalue("small_data")
        folder = make_small_project(tmp_path_factory.mktemp("proved") / "project", small_data)
        edit_demo(folder, _proof)
        result = smt(folder, "prove", "--scale", "demo", "--draw", SEED, prepare=AS_FORKS)
        return folder, result.stdout
    project = ProjectCopy(tmp_path_factory.mktemp("proved_by_dag") / "project")
    for change in (shrink_demo, make_small):
        change(project.folder)
    # One of its kills waits for a checkpoint: there have to be some after it.
    epochs = {"epochs": 4}
    edit_demo(
        project.folder,
        lambda demo: (_proof(demo), demo["recipes"]["imagenet1k"]["schedule"].update(epochs)),
    )
    result = project.snakemake("proof")
    assert result.returncode == 0, result.stderr
    logs = (project.folder / "results/demo/logs/prove").glob("*.log")
    return project.folder, "".join(log.read_text() for log in logs)


def _proof(demo):
    """Configure proofs of a run on one and on two processes."""
    demo["proof"].update(
        kills=5, runs=[{"experiment": RUN, "ranks": 1}, {"experiment": RUN, "ranks": 2}]
    )


def proof_record(project, ranks):
    path = project / f"results/demo/proof/{RUN}-seed0-ranks{ranks}.json"
    return json.loads(path.read_text())


@contextmanager
def another_proof(project, record):
    """Add a proof's record, give the text of the table with it, and restore both."""
    folder = project / "results/demo/proof"
    tables = {path: path.read_bytes() for path in folder.glob("*.*") if path.suffix != ".json"}
    path = folder / "other.json"
    path.write_text(json.dumps(record))
    try:
        assert smt(project, "prove", "--tables", "only", "--scale", "demo").returncode == 0
        yield (folder / "proof.md").read_text()
    finally:
        path.unlink()
        for table, content in tables.items():
            table.write_bytes(content)


@pytest.mark.parametrize("ranks", [1, 2])
def test_weights_and_journals_are_equal_after_real_kills(proof_project, ranks):
    project, output = proof_project
    record = proof_record(project, ranks)
    assert ProofRecord(**record).is_equal, record
    assert record["kills_drawn"] == 5 and len(record["kills"]) >= 4
    assert len(set(record["weights_sha256"])) == 1 and len(record["weights_sha256"][0]) == 64
    assert record["steps_lost_when_told"] == 0 and record["most_steps_repeated"] <= 20
    effective = [kill for kill in record["kills"] if kill["ends"]]
    assert record["resumed_at"] == [kill["resumed_at"] for kill in effective]
    for kill in effective:
        expected = {75} if kill["saves"] else {75, -signal.SIGKILL}
        assert set(kill["exit_codes"]) <= expected
    assert output.count("equal to the byte") == 2


def test_the_table_has_a_row_for_each_proof(proof_project):
    project, _ = proof_project
    folder = project / "results/demo/proof"
    with (folder / "proof.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["experiment"], row["ranks"]) for row in rows] == [(RUN, "1"), (RUN, "2")]
    text = (folder / "proof.md").read_text()
    assert "2 of 2 ended with the same bytes" in text and "NOT EQUAL" not in text
    assert "demo scale: not comparable with the paper" in text


def test_two_processes_are_compared_with_one(proof_project):
    project, _ = proof_project
    comparison = proof_record(project, 2)["one_rank"]
    assert len(set(comparison["steps"])) == len(set(comparison["images"])) == 1
    assert comparison["first_loss"][0] == pytest.approx(comparison["first_loss"][1], rel=1e-3)
    assert 0 < comparison["weights_relative_l2"] < 0.1
    text = (project / "results/demo/proof/world_size.md").read_text()
    assert "the order in which gradients are added up" in text


def test_a_difference_is_named_in_the_table(proof_project, tmp_path):
    project, _ = proof_project
    record = proof_record(project, 1)
    difference = {"journal_equal": False, "first_difference": "line 3: this and that"}
    with another_proof(project, record | difference) as text:
        assert "NOT EQUAL: line 3: this and that" in text and "2 of 3 ended" in text


def test_kills_that_were_not_sent_are_counted(proof_project):
    project, _ = proof_project
    record = proof_record(project, 1)
    with another_proof(project, record | {"kills_drawn": 9}) as text:
        assert f"| {len(record['kills'])} of 9 |" in text


def test_a_kill_waits_for_at_most_one_checkpoint(tmp_path):
    layout = Layout("demo", tmp_path / "results", tmp_path / "data")
    run = Run(experiment=RUN, seed=0)
    proof = Proof(None, layout, run, None, ranks=1, kills=2, draw=0)
    folder = proof._layout("interrupted").run_dir(run) / "work-0"
    folder.mkdir(parents=True)
    heartbeat.Heartbeat(folder).write(7)
    planned = plan.Kill(
        step=3, signal=signal.SIGKILL, target="all ranks", moment="checkpoint", rank=0, workers=0,
        delay=0.0,
    )  # fmt: skip
    training = FakeTraining()
    kill, step = proof._send(training, planned, step_seconds=0.0, latest=7)
    assert (kill, step) == (replace(planned, moment="step"), 7)
    assert training.killed == [(signal.SIGKILL, None)]


class FakeTraining:
    """A fake training that neither ends nor saves."""

    def __init__(self):
        self.killed = []

    def poll(self):
        return None

    def kill(self, number, rank):
        self.killed.append((number, rank))


def test_the_table_names_the_nodes_of_slurm(proof_project):
    project, _ = proof_project
    current = proof_record(project, 2)
    text = (project / "results/demo/proof/proof.md").read_text()
    assert "SLURM" not in text
    records = ({"launcher": "slurm", "nodes": 2}, {})
    assert records[0].keys() <= current.keys()
    for record, expected in zip(records, (["2 on 2 nodes of SLURM"], []), strict=True):
        old = {key: value for key, value in current.items() if key not in records[0]}
        with another_proof(project, old | record) as text:  # the second is of before launchers
            assert re.findall(r"\d on \d nodes of SLURM", text) == expected


def test_the_dag_proves_the_runs_of_the_scale(tmp_path):
    project = ProjectCopy(tmp_path / "project")
    edit_demo(project.folder, _proof)
    result = project.snakemake("--dry-run", "--quiet", "host", "--printshellcmds", "proof")
    assert result.returncode == 0, result.stderr
    output = result.stdout + result.stderr
    assert output.count(f"smt prove {RUN} --seed 0 --ranks ") == 2
    assert output.count("smt prove --tables only --scale demo") == 1


def test_a_training_that_fails_in_a_proof_is_one_line(small_project):
    (small_project / "results/demo/data/imagenet22k.json").unlink()
    arguments = ("prove", "imagenet1k_smt_large_224", "--scale", "demo")
    result = smt(small_project, *arguments, check=False, prepare=AS_FORKS)
    assert result.returncode == 4
    one_line(result, "has no manifest", "run: smt data manifest", "its logs are in")


def test_a_recipe_without_determinism_is_one_line(small_project):
    edit_demo(small_project, lambda demo: demo["recipes"]["imagenet1k"].update(deterministic=False))
    result = smt(small_project, "prove", RUN, "--scale", "demo", check=False)
    assert result.returncode == 2
    one_line(
        result, f"{RUN}-seed0: recipe imagenet1k", "deterministic: false", "params/recipes.yaml"
    )


def test_a_scale_without_runs_to_prove_is_one_line(small_project):
    result = smt(small_project, "prove", "--scale", "paper", check=False)
    assert result.returncode == 2
    one_line(result, "scale paper names no runs to prove", "smt prove EXPERIMENT")


def test_kills_are_a_function_of_their_seed():
    def draw(seed, ranks=1):
        return plan.draw("run", seed, steps=100, ranks=ranks, kills=9)

    assert draw(1) == draw(1) != draw(2)
    for ranks in (1, 2):
        kills = draw(3, ranks)
        assert [kill.step for kill in kills] == sorted({kill.step for kill in kills})
        assert all(0 < kill.step < 99 and kill.rank < ranks for kill in kills)
        kinds = Counter((k.signal, k.target, k.moment) for k in kills)
        assert len(kinds) == (7 if ranks == 1 else 9)
    assert {kill.target for kill in draw(3, 2)} == {"all ranks", "one rank", "data worker"}


def test_more_kills_than_steps_are_refused():
    with pytest.raises(UserError, match="--kills 9: run has 8 steps; valid: 1 to 6"):
        plan.draw("run", 0, steps=8, ranks=1, kills=9)
