"""The finished project as fixtures: made once by the real commands, and copied."""

import shutil

import pytest

from tests.helpers.finished_project import CHILD, CHILD_384, PARENT, T, copy, shrink, smt
from tests.helpers.project_copy import ProjectCopy


@pytest.fixture(scope="session")
def finished(tmp_path_factory, demo_data):
    """The project after every command of the DAG, in a git checkout with a change in it."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    project = ProjectCopy(folder)
    shrink(project)
    shutil.copytree(demo_data / "results", folder / "results")
    (folder / "data").symlink_to(demo_data / "data")
    (folder / ".gitignore").write_text("results\ndata\n")
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a project"]):
        assert project.run(*git, *command).returncode == 0
    with (folder / "params/models.yaml").open("a") as file:
        file.write("# not committed\n")
    for experiment, seeds in ((T, (0, 1)), (PARENT, (0,)), (CHILD, (0,)), (CHILD_384, (0,))):
        for seed in seeds:
            smt(project, "train", experiment, "--seed", str(seed))
            smt(project, "evaluate", experiment, "--seed", str(seed))
    smt(project, "profile", "--scale", "paper")
    for command in ("profile", "sync", "tables"):
        smt(project, command)
    return project


@pytest.fixture
def project(finished, tmp_path):
    """A copy of it that a test may change."""
    return copy(finished, tmp_path / "project")
