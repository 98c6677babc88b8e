"""The example does what its README describes, without SLURM."""

import re
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from testbed.toy_workflow import Toy

EXAMPLE = Path(__file__).resolve().parents[2] / "example"
REPORT = "\n".join(
    f"results/{name}.score:{steps} steps, sum 500500 1000"
    for name, steps in (("small", 20), ("large", 40))
)


@pytest.fixture
def example(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "example")
    with Toy(tmp_path / "example") as toy:
        yield toy


def test_the_example_makes_its_report(example):
    example.succeed(cluster="local")
    assert (example.folder / "results" / "report.txt").read_text().strip() == REPORT
    assert "Nothing to be done" in example.succeed(cluster="local")


def training_job(folder):
    """Return the process of the example's only job, or None until its state is saved."""
    if not (folder / "results" / "small.state").exists():
        return None
    (job,) = [
        process for process in psutil.process_iter(["cmdline", "cwd"])
        if "submitit.core._submit" in (process.info["cmdline"] or [])
        and process.info["cwd"] == str(folder)
    ]  # fmt: skip
    return job


def test_a_training_stopped_by_sigusr2_resumes_from_its_state(example):
    driver = example.start("results/small.model", "--config", "steps=1000000", cluster="local")
    job = driver.await_that(lambda: training_job(example.folder))
    job.send_signal(signal.SIGUSR2)
    log = example.folder / "logs" / "train_small.log"  # that of its latest attempt
    driver.await_that(lambda: log.exists() and re.match(r"begins at step [1-9]", log.read_text()))
    driver.send_signal(signal.SIGINT)
    driver.finish()
