"""How many data workers a process has, by the CPUs that SLURM or the system gives it."""

import logging
import os

import pytest
import torch

from smt.config.project import MOST_WORKERS
from smt.engine.cpus import cpu_share, data_workers
from smt.engine.distributed import Ranks

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2"}


def ranks(rank=0):
    return Ranks(rank, 2, torch.device("cpu"))


@pytest.mark.parametrize(
    ("environment", "allowed", "cpus"),
    [
        ({}, 12, 12),  # a workstation
        ({"LOCAL_WORLD_SIZE": "4"}, 12, 3),  # torchrun on it
        ({"LOCAL_WORLD_SIZE": "4"}, 2, 1),
        ({"SLURM_CPUS_PER_TASK": "8", "SLURM_CPUS_ON_NODE": "8"}, 64, 8),  # CPUs are not bound
        ({"SLURM_CPUS_PER_TASK": "8", "SLURM_CPUS_ON_NODE": "8"}, 4, 4),  # fewer are bound
        ({"SLURM_CPUS_ON_NODE": "6"}, 64, 6),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "8", "SLURM_CPUS_PER_TASK": "8",
          "SLURM_CPUS_ON_NODE": "32"}, 64, 8),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "8", "SLURM_CPUS_ON_NODE": "32"}, 64, 8),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "8", "SLURM_CPUS_ON_NODE": "2"}, 64, 1),
        ({"SLURM_CPUS_PER_TASK": "32", "SLURM_CPUS_ON_NODE": "32", "LOCAL_WORLD_SIZE": "4"}, 64, 8),
    ],
)  # fmt: skip
def test_processes_share_the_cpus_that_they_were_given(environment, allowed, cpus):
    assert cpu_share(environment, allowed).cpus == cpus


@pytest.fixture
def on(monkeypatch):
    """Let this process have so many CPUs of SLURM's."""

    def give(cpus):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(cpus))

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return give


@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (2, 1), (8, 7), (64, MOST_WORKERS)])
def test_one_cpu_is_left_to_the_training(on, caplog, cpus, workers):
    on(cpus)
    assert data_workers(None, ranks()) == workers
    assert not caplog.text


@pytest.mark.parametrize("workers", [0, 3, 4])
def test_a_number_that_is_set_is_taken(on, caplog, workers):
    on(4)
    assert data_workers(workers, ranks()) == workers
    assert not caplog.text


def test_more_workers_than_cpus_are_taken_and_rank_0_says_so(on, caplog):
    on(2)
    with caplog.at_level(logging.WARNING):
        assert [data_workers(8, ranks(rank)) for rank in (0, 1)] == [8, 8]
    (message,) = caplog.messages
    assert "8 data workers for the 2 CPUs of this process (SLURM_CPUS_PER_TASK=2)" in message
    assert "`workers` (params/scales.yaml" in message and "--cpus-per-task" in message
