"""A project that was made, recorded and pushed once, for all tests of DVC."""

import pytest

from tests.helpers.versioned import Versioned, cut_down


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A project after `snakemake all`, `smt dvc record`, a commit and `dvc push`."""
    project = Versioned(tmp_path_factory.mktemp("dvc") / "project")
    cut_down(project)
    project.git("init", "-q")
    made = project.snakemake("all")
    assert made.returncode == 0, made.stderr[-3000:]
    said = project.record()
    assert "recorded: 5 runs, all, with data and tables" in said
    assert "dvc.yaml is another one" in said
    project.git("add", "-A")
    project.git("commit", "-qm", "recorded")
    project.dvc("push")
    return project
