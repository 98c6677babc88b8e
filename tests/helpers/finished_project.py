"""A small project in which all runs are done, for tests of what runs write."""

import json
import shutil
from pathlib import Path

import yaml

from smt.config.load import load_project
from smt.runs.atomic import write_json
from smt.runs.paths import Layout
from smt.verify.audit import Audit
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.shrink import keep, keep_used
from tests.helpers.versioned import SCALE, Versioned

NAME = "project"
RESULTS = f"results/{SCALE}"
T, SMALL, ABLATION = "imagenet1k_smt_tiny", "imagenet1k_smt_small", "ablation_heads_1"
PARENT = "imagenet22k_smt_large"
CHILD, CHILD_384 = "imagenet1k_smt_large_224", "imagenet1k_smt_large_384"
CLASSIFIERS = (T, SMALL, ABLATION, PARENT, CHILD, CHILD_384)
DETECTORS = ("coco_mask_rcnn_1x_smt_small", "coco_retinanet_smt_small")
SEGMENTER = "ade20k_upernet_smt_small"
DOWNSTREAM = (*DETECTORS, SEGMENTER)
RUNS = {(T, 1), *((name, 0) for name in (*CLASSIFIERS, *DOWNSTREAM))}
TABLES = ("imagenet1k", "imagenet22k", "ablation_heads", "coco_mask_rcnn", "coco_detectors",
          "ade20k")  # fmt: skip
BESIDE = ("peers_imagenet1k", "peers_coco", "peers_ade20k", "claims", "sizes", "throughput",
          "drift")  # fmt: skip
"""Tables that are not in tables.yaml."""


def shrink(params, experiments=(*CLASSIFIERS, *DOWNSTREAM)):
    """Remove all but a few experiments, one or two of each kind, and their tables from `params`."""

    def tables(content):
        content["tables"] = {
            name: table for name, table in content["tables"].items() if name in TABLES
        }

    keep(params, experiments)
    keep_used(params)
    edit_yaml(params / "tables.yaml", tables)


def finish(folder):
    """Make a project in a folder and run `snakemake all`, `smt dvc record`, a commit, `dvc push`.

    It is trained in a git checkout with an uncommitted change. Its data are in a folder beside it.
    """
    project = Versioned(folder / NAME)
    shrink(project.folder / "params")
    (folder / "data").mkdir()
    (project.folder / "data").symlink_to(folder / "data")
    project.git("init", "-q")
    with (project.folder / ".git/info/exclude").open("a") as file:
        file.write("data\n")  # a link here, which no clone has
    project.git("add", ".")
    project.git("commit", "-q", "-m", "a project")
    with (project.folder / "params/models.yaml").open("a") as file:
        file.write("# not committed\n")
    done = project.snakemake("all")
    assert done.returncode == 0, done.stderr[-3000:]
    output = project.record()
    assert f"recorded: {len(RUNS)} runs, all, with data and tables" in output
    assert "dvc.yaml was updated" in output
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "recorded")
    project.dvc("push")


def edit_yaml(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def copy(project, folder):
    """Return an editable copy of a project's params and results, with the same data."""
    other = ProjectCopy.__new__(Versioned)
    ProjectCopy.__init__(other, folder, project.folder)
    shutil.copytree(project.folder / "results", folder / "results", copy_function=_copy)
    (folder / "data").symlink_to(project.folder / "data")
    return other


def _copy(source, target):
    shutil.copy2(source, target)
    Path(target).chmod(0o644)  # DVC makes tracked files read-only


def layout(project):
    return Layout(SCALE, project.folder / "results", project.folder / "data")


def load(project, scale=SCALE):
    return load_project(project.folder / "params", scale)


def audit(project):
    """Return the ledger of `smt verify`, without starting a process."""
    return Audit(load(project), layout(project), load(project, "paper")).check_all()


def mismatches(project):
    return [str(mismatch) for mismatch in audit(project).mismatches]


def run_dir(project, experiment=T, seed=0) -> Path:
    return project.folder / RESULTS / "runs" / experiment / f"seed{seed}"


def work_dir(project, experiment=T, seed=0) -> Path:
    (folder,) = run_dir(project, experiment, seed).glob("work-*")
    return folder


def table(project, name) -> Path:
    return project.folder / RESULTS / "tables" / name


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def flip(path):
    """Change the last bit of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
