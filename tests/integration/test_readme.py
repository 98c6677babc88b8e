"""Statements of the documents about params, files and the DAG. Commands are run in docs/."""

import re
import subprocess
from typing import Any

import pytest
import torch

from smt.cli import COMMANDS
from tests.helpers import ROOT
from tests.helpers.documents import (
    DEMO_RESULTS,
    DOCUMENTS,
    README,
    WORKED_EXAMPLE,
    blocks,
    follow_example,
    follow_timm_example,
)
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.shrink import keep

MAX_LINES = 150
"""Of the README: the rest has pages of its own."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return ProjectCopy(tmp_path_factory.mktemp("readme") / "project")


def test_the_worked_example_adds_one_run_and_its_row(tmp_path):
    assert len(blocks(WORKED_EXAMPLE, "yaml")) == 6, "of a variant 3, of timm 1, of a detector 2"
    project = follow_example(ProjectCopy(tmp_path / "project"))
    assert project.plan("ablation_heads_3").trainings == {("ablation_heads_3", 0): "ablation"}
    table = project.plan("results/demo/tables/ablation_heads.md")
    assert "ablation_heads_3" in table.experiments
    assert project.smt("tables", "ablation_heads").returncode == 0
    text = (project.folder / "results/demo/tables/ablation_heads.md").read_text()
    assert re.search(r"^\| 3 \|.*not started", text, re.M)


def test_the_worked_example_of_a_model_of_timm_is_counted_and_planned(tmp_path):
    project = ProjectCopy(tmp_path / "project")
    keep(project.folder / "params", ("imagenet1k_smt_tiny",))
    follow_timm_example(project)
    refused = project.smt("check")
    assert "timm.convnext_tiny at 32, 10 classes is missing" in refused.stderr
    assert refused.stderr.rstrip().endswith("count it: smt profile --update")
    for command in (("profile", "--update"), ("check",)):
        done = project.smt(*command)
        assert done.returncode == 0, done.stderr
    name = "imagenet1k_convnext_tiny"
    assert (name, 0) in project.plan(name).trainings


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_documents_exist(document):
    for program, name in set(re.findall(r"`(make|smt) ([a-z][a-z-]*)[^`]*`", document.read_text())):
        if program == "smt":
            assert name in COMMANDS
        else:
            subprocess.run(["make", "--dry-run", name], cwd=ROOT, check=True, capture_output=True)


def names_of(document, number=0):
    """Run a block of Python of a document, and return the names that it leaves."""
    _, block = blocks(ROOT / "docs" / document, "python")[number]
    names: dict[str, Any] = {}
    exec(compile(block, document, "exec"), names)
    return names


def test_the_python_example_runs():
    backbone = names_of("weights.md")["backbone"]
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]


def test_the_page_on_backbones_has_examples_that_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(blocks(ROOT / "docs" / "backbone.md", "python")) == 4
    features = names_of("backbone.md")
    assert features["strides"] == [4, 8, 16, 32]
    row = " | ".join(" x ".join(map(str, shape[1:])) for shape in features["shapes"])
    assert f"| 384 x 384 | {row} |" in (ROOT / "docs" / "backbone.md").read_text()
    assert all(stage.grad_checkpointing for stage in names_of("backbone.md", 1)["model"].stages)
    loaded = names_of("backbone.md", 2)
    ours, theirs = loaded["backbone"].state_dict(), torch.load("smt_tiny.pth")["model"]
    name = "stages.0.blocks.0.mlp.expand.weight"
    (actual,) = (tensor for key, tensor in ours.items() if key.endswith(name))
    assert torch.equal(actual, theirs["block1.0.mlp.fc1.weight"])
    rates = names_of("backbone.md", 3)["rates"]
    assert (f"{rates[0]:.1e}", rates[-1]) == ("4.4e-05", 1e-3)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_links_exist(document):
    text = document.read_text()
    for path in re.findall(r"`((?:smt|params|workflow|benchmarks|docs|tests)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / link).exists(), link


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= MAX_LINES


def test_the_picture_of_the_dag_shows_every_rule_with_outputs():
    picture = (ROOT / "docs" / "dag.svg").read_text()
    assert picture.count("<svg") == 1
    rules = {
        name
        for file in (ROOT / "workflow" / "rules").glob("*.smk")
        # Not part of `all`, or only once a file is named.
        if file.name not in ("targets.smk", "proof.smk", "rehearsal.smk", "released.smk")
        for name in re.findall(r"^(?:rule|use rule \w+ as) (\w+)", file.read_text(), re.M)
    }
    assert len(rules) >= 10
    assert rules <= set(re.findall(r">([\w ]+)</text>", picture))


FILL = ["python", str(ROOT / "docs" / "demo_results.py")]


def test_demo_tables_are_written_between_the_markers(project, tmp_path):
    assert project.smt("tables").returncode == 0
    page, before = tmp_path / "demo-results.md", DEMO_RESULTS.read_text()
    page.write_text(before)
    tables = str(project.folder / "results/demo/tables")
    assert project.run(*FILL, str(page), tables).returncode == 0
    filled = page.read_text()
    assert "## ImageNet-1K\n" in filled and "## Drift\n" in filled
    assert "demo scale: not comparable with the paper" in filled
    assert filled.split("<!-- demo tables")[0] == before.split("<!-- demo tables")[0]
    assert project.run(*FILL, str(page), tables).returncode == 0
    assert page.read_text() == filled


def test_links_to_a_local_server_are_removed_from_tables(project, tmp_path):
    link = "(http://127.0.0.1:5000/#/runs?a=%5B1%5D)"
    (tmp_path / "index.md").write_text("- [Results](results.md): 1 done\n")
    (tmp_path / "results.md").write_text(
        "# Results\n\n| Variant | Reported | Top-1 | Runs |\n| --- | --- | ---: | --- |\n"
        f"| a \\| b | 82.2 \\[a\\] | [61.57 ± 1.94]{link} | [seed 0]{link} |\n\n"
        "\\[a\\] [The paper](https://example.org/paper).\n"
    )
    page = tmp_path / "demo-results.md"
    page.write_text("<!-- demo tables: begin -->\nold\n<!-- demo tables: end -->\n")
    assert project.run(*FILL, str(page), str(tmp_path)).returncode == 0
    assert page.read_text() == (
        "<!-- demo tables: begin -->\n\n## Results\n\n"
        "| Variant | Reported | Top-1 |\n| --- | --- | ---: |\n"
        "| a \\| b | 82.2 \\[a\\] | 61.57 ± 1.94 |\n\n"
        "\\[a\\] [The paper](https://example.org/paper).\n\n<!-- demo tables: end -->\n"
    )


def test_missing_markers_or_tables_are_one_line(project, tmp_path):
    (tmp_path / "README.md").write_text("# Bare\n")
    result = project.run(*FILL, str(tmp_path / "README.md"), str(tmp_path))
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "make reproduce, then make demo-docs" in result.stderr
