"""Checks of smt doctor on a node, from the node's answer."""

import pytest

from smt.cluster.doctor import node
from smt.cluster.doctor.node import Answer, Environment
from smt.runs.atomic import write_json

ENVIRONMENT = Environment("3.11", "0.1", {})
HEALTHY = {
    "count": 1, "problem": None, "name": "NVIDIA A100-SXM4-80GB", "memory_bytes": 80 * 2**30,
    "driver": "580.159", "exchange_problem": None, "shared_memory_bytes": 8 * 2**30,
}  # fmt: skip


def gpu_checks(gpus, needed=True):
    answer = Answer("n1", ENVIRONMENT, gpus)
    return [(check.level, check.subject, check.text) for check in node.gpu_checks(answer, needed)]


def test_a_gpu_that_trains_is_named_with_its_memory_and_driver():
    (level, subject, text), _ = gpu_checks(HEALTHY)
    assert (level, subject) == ("ok", "gpu")
    assert "NVIDIA A100-SXM4-80GB, 80 GiB, driver 580.159" in text


@pytest.mark.parametrize("needed", [True, False])
def test_a_gpu_that_cannot_be_used_is_an_error(needed):
    (level, _, text), _ = gpu_checks(
        {**HEALTHY, "problem": "a step in bf16 fails: no kernel"}, needed
    )
    assert level == "error" and text == "n1: a step in bf16 fails: no kernel"


@pytest.mark.parametrize(("needed", "expected"), [(True, "error"), (False, "warning")])
def test_no_gpu_is_an_error_where_one_is_needed(needed, expected):
    without_gpu = {**HEALTHY, "count": 0}
    (level, _, text), _ = gpu_checks(without_gpu, needed)
    assert level == expected and "sees none of the GPUs" in text


@pytest.mark.parametrize(("gpus", "way"), [(1, "gloo, on its CPU"), (2, "NCCL, with a GPU each")])
def test_the_backend_of_the_gradient_exchange_is_named(gpus, way):
    _, (level, subject, text) = gpu_checks({**HEALTHY, "count": gpus})
    assert (level, subject) == ("ok", "exchange") and text.endswith(f"through {way}")


def test_processes_that_cannot_exchange_gradients_are_an_error():
    problem = "NCCL: Duplicate GPU detected : rank 1 and rank 0"
    _, (level, _, text) = gpu_checks({**HEALTHY, "count": 2, "exchange_problem": problem})
    assert level == "error" and problem in text


def test_a_torch_that_does_not_load_is_an_error():
    ((level, _, text),) = gpu_checks(None, needed=False)
    assert level == "error" and "does not load" in text


def test_little_shared_memory_is_a_warning():
    *_, (level, subject, text) = gpu_checks({**HEALTHY, "shared_memory_bytes": 64 * 2**20})
    assert (level, subject) == ("warning", "/dev/shm") and "64 MB" in text


def test_the_answer_of_other_code_is_read_without_what_it_measured(tmp_path):
    """That code may be older than the comparison of two hosts, and has no such entry."""
    content = {"node": "n1", "environment": ENVIRONMENT._asdict(), "gpus": HEALTHY}
    write_json(tmp_path / node.ANSWER, content)
    answer = node.read_answer(tmp_path)
    assert answer == Answer("n1", ENVIRONMENT, HEALTHY, None)
    ((level, text),) = [(check.level, check.text) for check in node.environment_checks(answer)]
    assert level == "error" and text.startswith("n1 differs: Python 3.11 there")
