"""`smt evaluate --released`, `snakemake released`, and where their numbers stand."""

import csv
import json
import shutil
from types import SimpleNamespace

import pytest
import yaml

from smt.commands import evaluate
from smt.models import released, zoo
from smt.runs.atomic import sha256
from smt.runs.paths import Layout
from tests.helpers import golden_fill, released_files
from tests.helpers.params import project_at
from tests.helpers.project_copy import ProjectCopy

SCALE = ("--scale", "smoke")
TINY = "imagenet1k_smt_tiny"
RECORD = f"results/smoke/released/{TINY}/evaluation.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project at scale smoke with its digits and a released file of its SMT-T."""
    project = ProjectCopy(tmp_path_factory.mktemp("released") / "project")
    done = project.smt("data", "make", "imagenet1k", *SCALE)
    assert done.returncode == 0, done.stderr
    model = project_at("smoke").models["smt_tiny"]
    ours = zoo.skeleton(model, num_classes=10).state_dict()
    shapes = {name: list(it.shape) for name, it in released.to_released(ours).items()}
    state = {n: it.float() if it.is_floating_point() else it
             for n, it in golden_fill.weights(shapes).items()}  # fmt: skip
    released_files.write(project.folder / "data" / "smt.pth", state)
    return project


@pytest.fixture
def project(made, tmp_path):
    return made.copy(tmp_path / "project")


def name_file(project, file, **settings):
    """Name a file of released weights at scale smoke, as params do."""
    path = project.folder / "params" / "scales.yaml"
    scales = yaml.safe_load(path.read_text())
    scales["smoke"]["released"] = {TINY: {"file": file, **settings}}
    path.write_text(yaml.safe_dump(scales, sort_keys=False))


def one_line(done, code, *words):
    assert done.returncode == code, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("smt: error")]
    assert "Traceback" not in done.stderr
    assert all(word in line for word in words), line


def test_numbers_are_printed_recorded_tabulated_and_verified(project):
    done = project.smt(
        "evaluate", "--released", "data/smt.pth", "--model", "smt_tiny", "--images", "64", *SCALE
    )
    assert done.returncode == 0, done.stderr
    assert "a random sample of 64 of 100 images" in done.stdout
    assert "Wilson score, 95 %" in done.stdout and "not comparable" in done.stdout
    record = json.loads((project.folder / RECORD).read_text())
    assert record["weights"]["sha256"] == sha256(project.folder / "data/smt.pth")
    assert record["weights"]["sha256"] in done.stdout
    low, high = record["intervals"]["top1"]
    assert low <= record["metrics"]["top1"] <= high

    done = project.smt("tables", "imagenet1k", *SCALE)
    assert done.returncode == 0, done.stderr
    tables = project.folder / "results/smoke/tables"
    with (tables / "imagenet1k.csv").open() as lines:
        rows = {row["label"]: row for row in csv.DictReader(lines)}
    assert float(rows["SMT-T"]["top1_released"]) == record["metrics"]["top1"]
    assert float(rows["SMT-T"]["top1_released_high"]) == high
    assert rows["SMT-T"]["released_sha256"] == record["weights"]["sha256"]
    assert rows["SMT-S"]["top1_released"] == rows["SMT-S"]["released_sha256"] == ""
    text = (tables / "imagenet1k.md").read_text()
    assert "released weights, here" in text and f"({low:.2f} to {high:.2f})" in text
    assert "Released weights not evaluated here: SMT-S; SMT-B; SMT-L" in text

    verified = project.smt("verify", *SCALE)
    assert verified.returncode == 0, verified.stdout
    assert "released weights  5 values of 1 files" in verified.stdout
    record["metrics"]["top1"] += 1
    (project.folder / RECORD).write_text(json.dumps(record))
    forged = project.smt("verify", *SCALE)
    assert forged.returncode == 5 and f"{RECORD}: top1" in forged.stdout + forged.stderr


def test_without_any_the_column_is_absent_at_a_scale_that_is_not_compared(project):
    assert project.smt("tables", "imagenet1k", "drift", *SCALE).returncode == 0
    tables = project.folder / "results/smoke/tables"
    assert "released weights, here" not in (tables / "imagenet1k.md").read_text()
    assert "No column of released weights" in (tables / "drift.md").read_text()


def test_at_the_papers_scale_an_empty_column_says_why_and_drift_names_results(project):
    assert project.smt("tables", "imagenet1k", "--scale", "paper").returncode == 0
    text = (project.folder / "results/paper/tables/imagenet1k.md").read_text()
    assert "released weights, here" in text
    assert "Released weights not evaluated here: SMT-T; SMT-S; SMT-B; SMT-L; name a file" in text

    assert project.smt("evaluate", TINY, "--released", "data/smt.pth", *SCALE).returncode == 0
    paper = project.folder / RECORD.replace("smoke", "paper")
    paper.parent.mkdir(parents=True)
    shutil.copy(project.folder / RECORD, paper)  # as if it were of the paper's model
    top1 = json.loads(paper.read_text())["metrics"]["top1"]
    assert project.smt("tables", "drift", "--scale", "paper").returncode == 0
    drift = (project.folder / "results/paper/tables/drift.md").read_text()
    assert "Released weights, here" in drift
    assert f"SMT-T {top1:.2f}, SMT-S not evaluated" in drift


def test_the_dag_evaluates_the_files_that_params_name(project):
    one_line(project.snakemake("released", "--config", "scale=smoke"), 2, "released.yaml", "file")
    name_file(project, "other.pth")
    one_line(
        project.snakemake("released", "--config", "scale=smoke"), 3, "data/other.pth",
        f"released.{TINY}.file",
    )  # fmt: skip
    name_file(project, "smt.pth")
    done = project.snakemake("released", "--config", "scale=smoke")
    assert done.returncode == 0, done.stderr
    assert json.loads((project.folder / RECORD).read_text())["images"] == 100
    again = project.snakemake("released", "--config", "scale=smoke")
    assert "Nothing to be done" in again.stderr + again.stdout
    # A table waits for them; another file, or another preprocessing, is evaluated again.
    plan = project.plan("results/smoke/tables/imagenet1k.html", "--config", "scale=smoke")
    assert RECORD in plan.outputs and RECORD not in plan.pending
    name_file(project, "smt.pth", preprocessing="squash")
    plan = project.plan("released", "--config", "scale=smoke")
    assert plan.pending == {RECORD: "evaluate_released"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, ["EXPERIMENT"]),
        (("--released", "data/smt.pth"), 2, ["EXPERIMENT", "--model"]),
        (("--released", "data/no.pth", "--model", "smt_tiny"), 2, ["no released weights"]),
        (("--released", "data/smt.pth", "--model", "smt_tny"), 2, ["did you mean", "smt_tiny"]),
        (("--released", "data/smt.pth", "--model", "smt_large"), 2,
         ["imagenet1k_smt_large_224", "imagenet1k_smt_large_384"]),
        (("coco_dino_smt_small", "--released", "data/smt.pth"), 2, ["is no SMT that classifies"]),
        ((TINY, "--released", "data/smt.pth", "--model", "smt_base"), 2, ["leave one"]),
        ((TINY, "--released", "data/smt.pth", "--seed", "0"), 2, ["--seed"]),
        ((TINY, "--released", "data/smt.pth", "--preprocessing", "centre_90"), 2,
         ["did you mean center_90"]),
        ((TINY, "--released", "data/smt.pth", "--data", "data/nowhere"), 3, ["no folder"]),
        ((TINY, "--released", "data/smt.pth", "--labels", "no.txt"), 2, ["no.txt", "--labels"]),
        ((TINY, "--images", "5"), 2, ["--images", "--released FILE"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_before_anything_runs(made, arguments, code, words):
    one_line(made.smt("evaluate", *arguments, *SCALE), code, *words)
    assert not (made.folder / "results/smoke/released").exists()


@pytest.mark.parametrize(("classes", "has"), [(1000, True), (10, False)])
def test_the_published_number_is_printed_for_the_data_sets_own_classes_alone(capsys, classes, has):
    data = SimpleNamespace(classes=classes, images=50_000, root="val")
    result = SimpleNamespace(
        experiment=TINY, metrics={"top1": 80.0}, intervals={}, data=data, images=50_000,
        weights=SimpleNamespace(path="smt.pth", sha256="0"), is_estimate=False, predictions="p.csv",
        preprocessing=SimpleNamespace(resize="squash", resolution=224, name="squash"),
    )  # fmt: skip
    evaluate._print(project_at("paper"), Layout.from_environment("paper"), result)
    out = capsys.readouterr().out
    assert "top-1 80.00" in out and ("published 82.2" in out) is has


def test_without_a_scale_it_is_the_papers_whatever_the_environment_says(made):
    done = made.smt("evaluate", TINY, "--released", "data/smt.pth", SMT_SCALE="smoke")
    one_line(
        done, 2, "not of smt_tiny at scale paper",
        "patch_embed1.conv.0.weight is 8 x 3 x 3 x 3, not 64", "--scale",
    )  # fmt: skip
