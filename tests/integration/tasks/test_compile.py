"""Trainings whose blocks go through torch.compile."""

import pytest

from tests.helpers.debian import require
from tests.helpers.trainings import (
    RUN_OF_DEMO,
    copy_project,
    outcome,
    provenance,
    smt,
    stop_at,
)

RUN = RUN_OF_DEMO


@pytest.mark.slow
def test_an_interrupted_compiled_training_ends_in_the_same_bytes(
    small_project, tmp_path, monkeypatch
):
    require("g++")
    recipes = small_project / "params" / "recipes.yaml"
    recipes.write_text(recipes.read_text().replace("compile: false", "compile: true"))
    other = copy_project(small_project, tmp_path / "other")
    # Caches of their own: each compiles for itself, as on two machines.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    smt(small_project, "train", RUN)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "other-cache"))
    for step in (5, 14):
        assert stop_at(other, step) == 75
    smt(other, "train", RUN)
    attempts = provenance(other)["attempts"]
    assert len({attempt["resumed_at_step"] for attempt in attempts}) == 3
    assert all(attempt["environment"]["compiled"] for attempt in attempts)
    assert outcome(other) == outcome(small_project)
