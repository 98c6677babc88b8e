"""What is run on a GPU runs on a CPU at a small size; no time is held to anything."""

import json
import os

import pytest

from tests.helpers import ROOT, forkserver

HEADS = 8

pytestmark = pytest.mark.xdist_group("gpu-benchmark")  # measured once


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what all parts but the long one measured, by part."""
    folder = tmp_path_factory.mktemp("gpu")
    return measured(folder, "facts", "agreement", "normalisation", "repeat", "roi_align",
                    "sampling", "steps", "training", "inference")  # fmt: skip


def measured(folder, *parts):
    target = folder / "measured.json"
    done = forkserver.run(
        str(ROOT / "benchmarks" / "gpu.py"), "--small", "--json", str(target),
        *parts, cwd=folder, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(target.read_text())


def test_on_the_same_device_there_is_no_difference(found):
    assert len(found["agreement"]) == HEADS
    assert all(each["loss_difference"] == each["gradient"] == 0 for each in
               found["agreement"].values())  # fmt: skip
    assert found["normalisation"]["differ"] == 0


def test_a_step_of_every_head_has_the_same_bits_again(found):
    expected = {"same": True, "recomputed": True, "named": []}
    assert len(found["repeat"]) == HEADS
    assert all(each == expected for each in found["repeat"].values())


def test_every_experiment_takes_its_steps_with_a_gradient_for_every_parameter(found):
    steps = found["steps"]
    assert len(steps) == 17
    assert [each.get("failed") for each in steps.values()] == [None] * 17
    assert not any(each["without_gradient"] for each in steps.values())


def test_every_variant_is_timed(found):
    for part in ("training", "inference"):
        assert len(found[part]) == 4
        assert all(value for each in found[part].values() for value in each.values())


@pytest.mark.slow
def test_killed_trainings_of_four_kinds_end_in_the_same_bytes(tmp_path):
    outcomes = measured(tmp_path, "resume")["resume"]
    assert len(outcomes) == 4
    for each in outcomes.values():
        assert each["weights_equal"] and each["journal_equal"] and len(each["kills"]) == 2
