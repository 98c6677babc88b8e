"""`smt prove` for real on a small set: trainings killed at random end with the same bytes."""

import csv
import json
import re
import signal
from collections import Counter
from contextlib import contextmanager

import pytest

from smt.errors import UserError
from smt.proof import plan
from smt.proof.record import ProofRecord
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
    result = project.snakemake("proof", new_processes=True)
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


def test_events_have_a_table_beside_proofs_without_events(proof_project):
    project, _ = proof_project
    event = {
        "command": "scancel $SMT_PROOF_JOB | cat", "rank": 1, "node": "n2", "at_step": 7,
        "ended_at": 8, "resumed_at": 3, "repeated": 5, "exit_codes": [75, -9],
    }  # fmt: skip
    events = {"events": [event], "events_drawn": 2}
    with another_proof(project, proof_record(project, 1) | events) as text:
        assert "Beside the kills there were 1 events" in text and "For 1 more no time" in text
        table = (project / "results/demo/proof/proof_events.md").read_text()
    assert "| n2 | 7 | ended at step 8: 75, -9 | 3 | 5 |" in table
    assert r"scancel $SMT_PROOF_JOB \| cat" in table


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


def test_events_are_drawn_among_the_kills_which_stay_the_same():
    commands = [f"echo {number}" for number in range(9)]
    for seed in range(20):
        kills = plan.draw("run", seed, steps=30, ranks=2, kills=9)
        schedule = plan.draw("run", seed, steps=30, ranks=2, kills=9, events=commands)
        assert schedule == plan.draw("run", seed, steps=30, ranks=2, kills=9, events=commands)
        assert [each for each in schedule if isinstance(each, plan.Kill)] == kills
        events = [each for each in schedule if isinstance(each, plan.Event)]
        assert [event.command for event in events] == commands
        steps = [each.step for each in schedule]
        assert steps == sorted(set(steps)) and steps[0] > 0 and steps[-1] < 29
        assert {event.rank for event in events} <= {0, 1}


def test_more_kills_than_steps_are_refused():
    with pytest.raises(UserError, match="--kills 9: run has 8 steps; valid: 1 to 6"):
        plan.draw("run", 0, steps=8, ranks=1, kills=9)
    with pytest.raises(
        UserError, match="6 and 1 of --event: run has 8 steps; valid: 1 to 6 in all"
    ):
        plan.draw("run", 0, steps=8, ranks=1, kills=6, events=["true"])
