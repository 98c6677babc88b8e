"""`dvc.yaml`, made from `params/`: a stage for the data, the DAG, each run, and the tables.

One stage runs the whole DAG: `dvc repro` starts Snakemake once and jobs run side by side. The
stages after it only take in what the DAG has made, so that each run has an entry of its own.
"""

from typing import Any

import yaml

from smt.config.experiments import Run
from smt.config.metrics import HEADLINES
from smt.config.project import Project
from smt.runs.paths import Layout

FILE = "dvc.yaml"
PARAMS = ("models", "heads", "recipes", "detection", "segmentation", "data", "experiments",
          "scales", "reported", "tables", "drift", "trajectory")  # fmt: skip
"""Files of `params/` that decide what the DAG makes."""

CURVES = "curves.csv"
"""File of a run's record that `dvc plots` reads."""

DATA, DAG, TABLES = "data", "dag", "tables"
HEADING = """\
# What DVC records of a reproduction. Made from params/ by: smt dvc record
# After `snakemake all` that command also takes in what was made, and nothing is run again.
"""


def run_stage(project: Project, run: Run) -> str:
    """Return the name of a run's stage."""
    return f"{_kind(project, run)}@{run}"


def _kind(project: Project, run: Run) -> str:
    return "run" if project.experiments[run.experiment].head is None else "downstream"


def text(project: Project, layout: Layout) -> str:
    """Return the content of `dvc.yaml` for a scale."""
    content = {"stages": _stages(project, layout), "plots": _plots(project, layout)}
    return HEADING + yaml.safe_dump(content, sort_keys=False, width=100)


def profile(project: Project) -> str:
    """Return the profile by which the DAG runs: the paper's needs a cluster."""
    return "slurm" if project.scale.notice is None else "local"


def _stages(project: Project, layout: Layout) -> dict[str, Any]:
    scale = layout.scale
    runs = f"{layout.root}/runs/${{item.experiment}}/seed${{item.seed}}"
    finals = [str(layout.metrics(run)) for run in project.runs]
    snakemake = f"snakemake --profile {profile(project)}"
    return {
        DATA: {
            "desc": "Manifests of the data sets; demo data are made first",
            "cmd": f"{snakemake} data --config scale={scale}",
            "params": [{"params/data.yaml": None}, {"params/scales.yaml": None}],
            "outs": _kept(str(layout.manifests)),
        },
        DAG: {
            "desc": "Every training, evaluation, table and figure, by Snakemake",
            "cmd": f"smt dvc make {DAG} --scale {scale}",
            "deps": [str(layout.manifests)],
            "params": [{f"params/{name}.yaml": None} for name in PARAMS],
            "outs": _kept(str(layout.index)),
        },
        **{
            kind: {
                "foreach": {
                    str(run): {"experiment": run.experiment, "seed": run.seed}
                    for run in project.runs
                    if _kind(project, run) == kind
                },
                "do": {
                    "cmd": "smt dvc make run ${item.experiment} --seed ${item.seed} "
                    f"--scale {scale}",
                    "deps": [f"{layout.index}/${{key}}.json"],
                    "outs": _kept(
                        f"{runs}/model.safetensors",
                        f"{runs}/evaluation.json",
                        f"{runs}/record",
                        *further,
                    ),
                    "metrics": _kept(f"{runs}/metrics.json"),
                },
            }
            for kind, further in (("run", ()), ("downstream", (f"{runs}/samples.jpg",)))
            if any(_kind(project, run) == kind for run in project.runs)
        },
        TABLES: {
            "desc": "Tables, figures and the report, as the DAG has made them",
            "cmd": f"smt dvc make {TABLES} --scale {scale}",
            "deps": [str(layout.index), *finals],
            "outs": _kept(*map(str, layout.derived_outputs)),
        },
    }


def _kept(*paths: str) -> list[dict[str, dict[str, bool]]]:
    # DVC deletes outputs before it runs a stage, unless they persist: runs would train again.
    return [{path: {"persist": True}} for path in paths]


def _plots(project: Project, layout: Layout) -> list[dict[str, dict[str, str]]]:
    return [
        {
            str(layout.record(run) / CURVES): {
                "x": "epoch",
                "y": _curve(project, run),
                "title": str(run),
            }
        }
        for run in project.runs
    ]


def _curve(project: Project, run: Run) -> str:
    validated = project.datasets[project.dataset_of(run.experiment)].val_images > 0
    task = project.experiments[run.experiment].task
    return HEADLINES[task] if validated else "train_loss"
