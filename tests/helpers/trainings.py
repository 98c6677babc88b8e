"""Runs of `smt train` on the demo's data, with models that train in seconds.

A small project has so few images that its run takes two seconds, for tests that are not about
accuracy. trained_fixtures.py has such runs that are done or were interrupted.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing

import yaml

from smt.runs.journal import JOURNAL
from testbed.waiting import wait_for
from tests.helpers import ROOT, forkserver, pause
from tests.helpers.ranks import start_ranks

RUN_OF_DEMO = "imagenet1k_smt_tiny"
TINY = {
    "widths": [8, 16, 32, 64],
    "depths": [1, 1, 2, 1],
    "msa_heads": [1, 2, 4, 8],
}


STEPS_PER_EPOCH, STEPS = 12, 24
"""Of a small project's run on ImageNet-1K: 100 images in batches of 8."""

IMAGES = {"imagenet1k": {"train": 10, "val": 5}, "imagenet22k": {"train": 2, "val": 1}}
"""Images per class of a small project's data sets, by split."""


def make_small_data(folder):
    """Make a small project's data and manifests by the real command."""
    shutil.copytree(ROOT / "params", folder / "params")
    shrink_demo(folder)
    make_small(folder)
    for key in (*IMAGES, "class_map:imagenet22k_to_1k"):
        for action in ("make", "manifest"):
            smt(folder, "data", action, key, "--scale", "demo")


def make_small_project(folder, small_data):
    """Make a small project: a copy of params, with a link to the small data."""
    shutil.copytree(small_data / "params", folder / "params")
    (folder / "data").symlink_to(small_data / "data")
    shutil.copytree(small_data / "results", folder / "results")
    return folder


def copy_project(source, folder):
    """Copy a project with its runs."""
    return shutil.copytree(source, folder, symlinks=True)


def make_small(folder):
    """Give params in `folder` the data sets and budgets of a small project."""

    def change(demo):
        for name, classes in (("imagenet1k", 10), ("imagenet22k", 100)):
            for split, images in IMAGES[name].items():
                demo["datasets"][name][f"{split}_images"] = classes * images
        demo["log_every"] = 2
        demo["recipes"]["*"].update(global_batch=8, device_batch=4)
        demo["recipes"]["imagenet22k"].update(global_batch=40, device_batch=20)
        for name in ("imagenet22k", "imagenet22k_to_1k_224", "imagenet22k_to_1k_384"):
            demo["recipes"][name]["schedule"].update(epochs=1, warmup_epochs=0)

    edit_demo(folder, change)


def make_project(folder, demo_data):
    """Make a project whose demo runs take seconds, with a link to the real demo data."""
    shutil.copytree(ROOT / "params", folder / "params")
    shrink_demo(folder)
    (folder / "data").symlink_to(demo_data / "data")
    shutil.copytree(demo_data / "results", folder / "results")
    return folder


def shrink_demo(folder):
    """Make the demo's models and budgets of params in `folder` smaller."""
    edit_demo(
        folder,
        lambda demo: (
            demo["models"]["smt_tiny"].update(TINY),
            demo["models"]["smt_large"].update(TINY),
            demo["recipes"]["*"].update(device_batch=32),
            demo["recipes"]["imagenet1k"]["schedule"].update(epochs=2),
            demo["recipes"]["imagenet1k"]["optimizer"].update(lr=2e-3),
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


def smt(project, *arguments, ranks=1, check=True, env=None, prepare=()):
    """Run a command in a project's folder; on several ranks, stdout and stderr are joined."""
    environment = {**os.environ, **(env or {})}
    if ranks == 1:
        result = forkserver.run("smt", *arguments, cwd=project, env=environment, prepare=prepare)
    else:
        result = _on_ranks(project, ranks, *arguments)
    if check:
        assert result.returncode == 0, result.stderr
    return result


def _on_ranks(project, ranks, *arguments):
    with closing(start_ranks(project, ranks, *arguments, log="smt")) as attempt:
        codes = exit_codes(attempt)
    logs = [project / "logs" / f"smt-rank{rank}.log" for rank in range(ranks)]
    output = "".join(log.read_text() for log in logs)
    return subprocess.CompletedProcess(arguments, max(codes, key=abs), output, output)


def start(project, *arguments, env=None, log="try", prepare=()):
    """Start a command in a project's folder; its output goes to logs/LOG.log."""
    path = project / "logs" / f"{log}.log"
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        return forkserver.start(
            "smt", *arguments, cwd=project, env={**os.environ, **(env or {})}, stdout=file,
            stderr=file, prepare=prepare,
        )  # fmt: skip


def output_of(project, log="try"):
    """Return the output of a command that `start` has started."""
    return (project / "logs" / f"{log}.log").read_text()


def exit_codes(attempt):
    """Wait until all ranks of an attempt have ended; return their exit codes."""
    return wait_for(attempt.poll, attempt.last_message, every=0.02)


def stop_at(project, step, *options, number=signal.SIGTERM, env=None):
    """Train until `step`, send the signal, and return the exit code."""
    prepare = pause.at_step(step)
    with start(project, "train", RUN_OF_DEMO, *options, env=env, prepare=prepare) as process:
        pause.await_stop(process, lambda: output_of(project))
        pause.send(process, number)
        return process.wait()


def outcome(project, *arguments):
    """Return the bytes of a run's weights and of its journal."""
    return weights(project, *arguments), (work_dir(project, *arguments) / JOURNAL).read_bytes()


def provenance(project, *arguments):
    return json.loads((work_dir(project, *arguments) / "provenance.json").read_text())


def run_dir(project, experiment="imagenet1k_smt_tiny", seed=0):
    return project / "results" / "demo" / "runs" / experiment / f"seed{seed}"


def work_dir(project, *arguments):
    (folder,) = run_dir(project, *arguments).glob("work-*")
    return folder


def weights(project, *arguments):
    return (run_dir(project, *arguments) / "model.safetensors").read_bytes()


def metrics(project, *arguments):
    return json.loads((run_dir(project, *arguments) / "metrics.json").read_text())


def one_line(result, *messages):
    """Assert that stderr has no traceback, and its last line is an error with these messages."""
    assert "Traceback" not in result.stderr, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("smt: error: "), result.stderr
    for message in messages:
        assert message in line, line


def await_step(folder, step, process):
    def is_reached():
        assert process.poll() is None, f"step {step} was not reached: exit {process.poll()}"
        for path in folder.glob("work-*/journal.jsonl"):
            lines = path.read_text().splitlines()
            if lines and json.loads(lines[-1])["step"] >= step:
                return True
        return False

    wait_for(is_reached, lambda: f"step {step}", every=0.02)
