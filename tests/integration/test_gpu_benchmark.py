"""The benchmark of GPUs runs on a CPU at a small size; times are not checked."""

import json
import os

import pytest

from tests.helpers import ROOT, forkserver

HEADS = 8

pytestmark = pytest.mark.xdist_group("gpu-benchmark")  # measured once


@pytest.fixture(scope="module")
def measurements(tmp_path_factory):
    """Return the measurements of the short parts, by part."""
    folder = tmp_path_factory.mktemp("gpu")
    return measure(folder, "facts", "agreement", "normalisation", "roi_align")


@pytest.fixture(scope="module")
def long_measurements(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    return measure(folder, "repeat", "sampling", "steps", "training", "inference")


def measure(folder, *parts):
    target = folder / "measured.json"
    result = forkserver.run(
        str(ROOT / "benchmarks" / "gpu.py"), "--small", "--json", str(target),
        *parts, cwd=folder, env=dict(os.environ),
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(target.read_text())


def test_cpu_against_cpu_has_no_difference(measurements):
    assert len(measurements["agreement"]) == HEADS
    assert all(value["loss_difference"] == value["gradient"] == 0 for value in
               measurements["agreement"].values())  # fmt: skip
    assert measurements["normalisation"]["differ"] == 0


@pytest.mark.slow
def test_a_repeated_step_of_every_head_has_the_same_bits(long_measurements):
    expected = {"same": True, "recomputed": True, "named": []}
    assert len(long_measurements["repeat"]) == HEADS
    assert all(value == expected for value in long_measurements["repeat"].values())


@pytest.mark.slow
def test_steps_of_every_experiment_give_every_parameter_a_gradient(long_measurements):
    steps = long_measurements["steps"]
    assert len(steps) == 19
    assert [step.get("failed") for step in steps.values()] == [None] * 19
    assert not any(step["without_gradient"] for step in steps.values())


@pytest.mark.slow
def test_every_variant_is_timed(long_measurements):
    for part in ("training", "inference"):
        assert len(long_measurements[part]) == 4
        assert all(value for times in long_measurements[part].values() for value in times.values())


@pytest.mark.slow
def test_killed_trainings_of_four_kinds_end_in_the_same_bytes(tmp_path):
    outcomes = measure(tmp_path, "resume")["resume"]
    assert len(outcomes) == 4
    for record in outcomes.values():
        assert record["weights_equal"] and record["journal_equal"] and len(record["kills"]) == 2
