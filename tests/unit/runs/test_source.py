"""Digests of the training code: which folders count, and which edits."""

import shutil

import pytest

from smt.runs import source
from tests.helpers import ROOT


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A copy of the package, whose digests are taken."""
    folder = tmp_path / "smt"
    shutil.copytree(ROOT / "smt", folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source, "PACKAGE", folder)
    return folder


def differences(before):
    return source.changes(before, source.digests())


@pytest.mark.parametrize(
    "folder",
    ["config", "data", "models", "detection", "segmentation", "evaluation", "engine", "tasks"],
)
def test_every_module_of_training_code_counts(code, folder):
    modules = sorted((code / folder).rglob("*.py"))
    before = source.digests()
    for module in modules:
        module.write_text(module.read_text() + "\nEDITED = True\n")
    assert differences(before) == [
        f"smt/{module.relative_to(code)} has changed" for module in modules
    ]


def test_the_order_of_mixers_counts(code):
    before, path = source.digests(), code / "config" / "models.py"
    text = path.read_text()
    assert text.count('"msa" if block % 2 else "sam"') == 1
    path.write_text(text.replace('"msa" if block % 2 else "sam"', '"sam" if block % 2 else "msa"'))
    assert differences(before) == ["smt/config/models.py has changed"]


def test_a_new_or_deleted_module_counts(code):
    before = source.digests()
    (code / "data" / "cutout.py").write_text("HOLES = 1\n")
    (code / "engine" / "optim.py").unlink()
    assert differences(before) == ["smt/data/cutout.py is new", "smt/engine/optim.py is gone"]


@pytest.mark.parametrize("folder", ["report", "tracking", "commands", "datasets", "cluster"])
def test_other_code_may_change_during_an_unfinished_run(code, folder):
    before = source.digests()
    for module in (code / folder).rglob("*.py"):
        module.write_text(module.read_text() + "\nEDITED = True\n")
    assert differences(before) == []


def test_comments_and_docstrings_do_not_count(code):
    before, path = source.digests(), code / "engine" / "optim.py"
    code_alone = path.read_text().split('"""', 2)[2]
    path.write_text(f'"""In other words."""\n# A remark.\n{code_alone}')
    assert differences(before) == []
