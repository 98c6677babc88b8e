"""Runs of `smt train` as a user types it, on the demo's data and on models that take seconds."""

import json
import os
import shutil
import subprocess
import sys

import yaml

from tests.helpers import ROOT, forkserver
from tests.helpers.waiting import wait_for

RUN_OF_DEMO = "imagenet1k_smt_tiny"
TINY = {
    "widths": [8, 16, 32, 64],
    "depths": [1, 1, 2, 1],
    "msa_heads": [1, 2, 4, 8],
}


def make_project(folder, demo_data):
    """Make a copy of params whose demo runs take seconds, with the real demo data beside it."""
    shutil.copytree(ROOT / "params", folder / "params")
    shrink_demo(folder)
    (folder / "data").symlink_to(demo_data / "data")
    shutil.copytree(demo_data / "results", folder / "results")
    return folder


def shrink_demo(folder):
    """Make the models and budgets of params in `folder` smaller still than the demo's."""
    edit_demo(
        folder,
        lambda demo: (
            demo["models"]["smt_tiny"].update(TINY),
            demo["models"]["smt_large"].update(TINY),
            demo["recipes"]["*"].update(device_batch=32),
            demo["recipes"]["imagenet1k"]["schedule"].update(epochs=2),
            demo["recipes"]["imagenet22k"]["schedule"].update(epochs=2),
            demo["recipes"]["imagenet22k_to_1k_224"]["schedule"].update(epochs=2),
            demo["recipes"]["imagenet22k_to_1k_384"]["schedule"].update(epochs=2),
        ),
    )


def edit_demo(project, change):
    path = project / "params" / "scales.yaml"
    scales = yaml.safe_load(path.read_text())
    change(scales["demo"])
    path.write_text(yaml.safe_dump(scales))


def command(*arguments, ranks=1):
    if ranks == 1:
        return [sys.executable, "-m", "smt", *arguments]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, f"--nproc-per-node={ranks}", "-m", "smt", *arguments]


def smt(project, *arguments, ranks=1, check=True, env=None):
    environment = {**os.environ, **(env or {})}
    if ranks == 1:
        done = forkserver.run("smt", *arguments, cwd=project, env=environment)
    else:
        done = subprocess.run(
            command(*arguments, ranks=ranks),
            cwd=project, capture_output=True, text=True, env=environment,
        )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr
    return done


def run_dir(project, experiment="imagenet1k_smt_tiny", seed=0):
    return project / "results" / "demo" / "runs" / experiment / f"seed{seed}"


def work_dir(project, *arguments):
    (folder,) = run_dir(project, *arguments).glob("work-*")
    return folder


def weights(project, *arguments):
    return (run_dir(project, *arguments) / "model.safetensors").read_bytes()


def metrics(project, *arguments):
    return json.loads((run_dir(project, *arguments) / "metrics.json").read_text())


def one_line(done, *words):
    """Assert that the last line of stderr is the error, without a traceback, and says `words`."""
    assert "Traceback" not in done.stderr, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("smt: error: "), done.stderr
    for word in words:
        assert word in line, line


def await_step(folder, step, process):
    def is_reached():
        assert process.poll() is None, f"step {step} was not reached: exit {process.poll()}"
        for path in folder.glob("work-*/journal.jsonl"):
            lines = path.read_text().splitlines()
            if lines and json.loads(lines[-1])["step"] >= step:
                return True
        return False

    wait_for(is_reached, lambda: f"step {step}", every=0.02)
