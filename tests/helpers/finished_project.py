"""A small project in which every run is done, for tests that look at what runs leave."""

import json
import shutil
from pathlib import Path

import yaml

from smt.files import write_json
from smt.layout import Layout
from smt.params import load_project
from smt.verify.audit import Audit
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.shrink import keep
from tests.helpers.trainings import TINY

DEMO = "results/demo"
T, PARENT = "imagenet1k_smt_tiny", "imagenet22k_smt_large"
CHILD, CHILD_384 = "imagenet1k_smt_large_224", "imagenet1k_smt_large_384"


def shrink(project):
    """Leave two tables of the demo: SMT-T with two seeds, and SMT-L from 22K to 1K."""

    def tables(content):
        names = ("imagenet1k", "imagenet22k")
        content["tables"] = {name: content["tables"][name] for name in names}

    def scales(content):
        demo = content["demo"]
        demo.pop("proof")
        demo["models"]["smt_tiny"].update(TINY)
        demo["models"]["smt_large"].update(TINY)
        demo["experiments"][T] = {"seeds": [0, 1]}
        for name, recipe in demo["recipes"].items():
            epochs = 2 if name == "imagenet1k" else 1
            recipe.setdefault("schedule", {}).update(epochs=epochs, warmup_epochs=0)

    keep(project.folder / "params", (T, PARENT, CHILD, CHILD_384))
    for change in (tables, scales):
        edit_yaml(project.folder / "params" / f"{change.__name__}.yaml", change)


def edit_yaml(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def smt(project, *arguments):
    done = project.smt(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def copy(project, folder):
    """Return a copy of a project and its results, on the same data."""
    other = ProjectCopy(folder, project.folder)
    shutil.copytree(project.folder / "results", folder / "results")
    (folder / "data").symlink_to(project.folder / "data")
    return other


def layout(project):
    return Layout("demo", project.folder / "results", project.folder / "data")


def load(project, scale="demo"):
    return load_project(project.folder / "params", scale)


def audit(project):
    """Return what `smt verify` finds, without starting a process for it."""
    return Audit(load(project), layout(project), load(project, "paper")).everything()


def findings(project):
    return [str(finding) for finding in audit(project).findings]


def run_dir(project, experiment=T, seed=0) -> Path:
    return project.folder / DEMO / "runs" / experiment / f"seed{seed}"


def work_dir(project, experiment=T, seed=0) -> Path:
    (folder,) = run_dir(project, experiment, seed).glob("work-*")
    return folder


def table(project, name) -> Path:
    return project.folder / DEMO / "tables" / name


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def flip(path):
    """Change the last bit of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
