"""`dvc.yaml`, made from `params/`: a stage for the data, the DAG, each run, and the tables.

One stage runs the whole DAG: `dvc repro` starts Snakemake once and jobs run in parallel. The stages
after it only archive what the DAG has made, so that each run has an entry of its own.
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
"""Files of `params/` that the DAG depends on."""

CURVES = "curves.csv"
"""File of a run's `record` folder that `dvc plots` reads."""

DATA, DAG, TABLES = "data", "dag", "tables"
HEADING = """\
# Stages of a reproduction, generated from params/ by: smt dvc record
# After `snakemake all` that command also records the outputs, without running anything again.
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
    """Return the Snakemake profile of the DAG: `slurm` at the paper's scale, else `local`."""
    return "slurm" if project.scale.notice is None else "local"


def _stages(project: Project, layout: Layout) -> dict[str, Any]:
    scale = layout.scale
    metrics = [str(layout.metrics(run)) for run in project.runs]
    snakemake = f"snakemake --profile {profile(project)}"
    return {
        DATA: {
            "desc": "Manifests of the data sets; demo data are made first",
            "cmd": f"{snakemake} data --config scale={scale}",
            "params": [{"params/data.yaml": None}, {"params/scales.yaml": None}],
            "outs": _persistent(str(layout.manifests)),
        },
        DAG: {
            "desc": "Every training, evaluation, table and figure, by Snakemake",
            "cmd": f"smt dvc make {DAG} --scale {scale}",
            "deps": [str(layout.manifests)],
            "params": [{f"params/{name}.yaml": None} for name in PARAMS],
            "outs": _persistent(str(layout.index)),
        },
        **_run_stages(project, layout),
        TABLES: {
            "desc": "Tables, figures and the report, as the DAG has made them",
            "cmd": f"smt dvc make {TABLES} --scale {scale}",
            "deps": [str(layout.index), *metrics],
            "outs": _persistent(*map(str, layout.derived_outputs)),
        },
    }


def _run_stages(project: Project, layout: Layout) -> dict[str, Any]:
    """Return a template per kind of run: a detector or segmenter has one output more."""
    folder = f"{layout.root}/runs/${{item.experiment}}/seed${{item.seed}}"
    outputs = {
        "run": ("model.safetensors", "evaluation.json", "record"),
        "downstream": ("model.safetensors", "evaluation.json", "record", "samples.jpg"),
    }
    items: dict[str, dict[str, Any]] = {kind: {} for kind in outputs}
    for run in project.runs:
        item = {"experiment": run.experiment, "seed": run.seed}
        items[_kind(project, run)][str(run)] = item
    command = "smt dvc make run ${item.experiment} --seed ${item.seed}"
    return {
        kind: {
            "foreach": items[kind],
            "do": {
                "cmd": f"{command} --scale {layout.scale}",
                "deps": [f"{layout.index}/${{key}}.json"],
                "outs": _persistent(*(f"{folder}/{name}" for name in names)),
                "metrics": _persistent(f"{folder}/metrics.json"),
            },
        }
        for kind, names in outputs.items()
        if items[kind]
    }


def _persistent(*paths: str) -> list[dict[str, dict[str, bool]]]:
    # DVC deletes outputs before it runs a stage unless they persist: every run would train again.
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
