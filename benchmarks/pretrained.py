"""Effect of the pretrained backbone on demo runs of detectors and segmenters, against a random one.

`python benchmarks/pretrained.py EXPERIMENT...` takes the runs that `make reproduce` has made, and
trains each experiment once more with nothing changed but that its backbone starts from the seed. It
prints the headline metric of both. The runs from scratch go into a folder of their own.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from smt.commands.common import find_run, load
from smt.config.experiments import Run
from smt.config.metrics import HEADLINES, METRICS
from smt.config.project import Project
from smt.errors import UserError
from smt.runs.atomic import read_json
from smt.runs.paths import Layout

SCALE = "demo"


def from_scratch(params: Path, project: Project, target: Path) -> None:
    """Copy params to `target`, with nothing that detectors and segmenters start from."""
    shutil.copytree(params, target)
    path = target / "scales.yaml"
    scales = yaml.safe_load(path.read_text())
    for name, experiment in project.experiments.items():
        if experiment.head is not None:
            scales[SCALE]["experiments"].setdefault(name, {})["start"] = None
    path.write_text(yaml.safe_dump(scales, sort_keys=False))


def score(project: Project, layout: Layout, run: Run) -> float:
    """Return the headline metric of a finished run.

    Raises:
        UserError: it is not done.
    """
    final = read_json(layout.metrics(run))
    if final is None:
        raise UserError(f"{run} has not been trained; run: make reproduce")
    return float(final["metrics"][HEADLINES[project.experiments[run.experiment].task]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("experiments", nargs="+", metavar="EXPERIMENT")
    names = parser.parse_args().experiments
    project, layout = load(SCALE)
    runs = [find_run(project, name, None) for name in names]
    pretrained = [score(project, layout, run) for run in runs]
    print(
        "| experiment | metric | from the pretrained backbone | from scratch |\n|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        scratch = Layout(SCALE, Path(folder) / "results", layout.data)
        shutil.copytree(layout.manifests, scratch.manifests)
        params = Path(folder) / "params"
        from_scratch(Path(os.environ.get("SMT_PARAMS", "params")), project, params)
        for run, before in zip(runs, pretrained, strict=True):
            folders = ("--params", params, "--results", scratch.results, "--data", layout.data)
            command = (*folders, "train", run.experiment, "--scale", SCALE, "--no-send")
            subprocess.run([sys.executable, "-m", "smt", *map(str, command)], check=True)
            metric = METRICS[HEADLINES[project.experiments[run.experiment].task]]
            after = score(project, scratch, run)
            places = metric.decimals
            row = (run.experiment, metric.heading, f"{before:.{places}f}", f"{after:.{places}f}")
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"benchmarks/pretrained.py: error: {error}")
