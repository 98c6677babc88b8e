"""The package: the content of its wheel, and errors where an optional package is missing."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes

import pytest

from smt.errors import EXTRAS
from tests.helpers import ROOT
from tests.helpers.project_copy import ProjectCopy

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"skimage": "scikit-image", "psycopg2": "psycopg2-binary"}
"""Names of the packages whose distributions have other ones."""
WITHOUT = "import sys; sys.modules[sys.argv.pop(1)] = None; from smt.cli import main; main()"
"""A program that is `smt` where a package cannot be imported."""
POSTGRES = {"MLFLOW_TRACKING_URI": "postgresql://127.0.0.1:1/mlflow"}


def test_the_wheel_has_code_params_and_types_and_needs_no_extra(tmp_path):
    copy = tmp_path / "copy"
    for name in ("smt", "params"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
    subprocess.run(build, cwd=copy, check=True, capture_output=True)
    (path,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (metadata,) = [name for name in names if name.endswith("/METADATA")]
        headers = message_from_bytes(wheel.read(metadata))
    assert {"smt/py.typed", "smt/cli.py", "smt/_params/models.yaml"} <= names
    assert {"demo", "dvc", "postgres", "report", "s3", "all"} <= set(
        headers.get_all("Provides-Extra")
    )
    required = {need for need in headers.get_all("Requires-Dist") if "extra ==" not in need}
    assert required.isdisjoint(DISTRIBUTIONS.get(name, name) for name in EXTRAS)


@pytest.mark.parametrize("package", EXTRAS)
def test_the_extra_of_a_package_contains_it(package):
    extra = PROJECT["optional-dependencies"][EXTRAS[package]]
    assert DISTRIBUTIONS.get(package, package) in extra
    assert (
        f"smt-reproduction[{','.join(sorted({*EXTRAS.values(), 's3'}))}]"
        in (PROJECT["optional-dependencies"]["all"])
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = ProjectCopy(tmp_path_factory.mktemp("extras") / "project")
    (project.folder / ".dvc").mkdir()
    (project.folder / ".dvc" / "config").touch()
    return project


@pytest.mark.parametrize(
    ("package", "command", "environment"),
    [
        ("mlxtend", "data make imagenet1k --scale demo", {}),
        ("skimage", "data make coco --scale demo", {}),
        ("matplotlib", "figures --scale demo", {}),
        ("psycopg2", "tables --scale demo", POSTGRES),
        ("psycopg2", "sync --scale demo", POSTGRES),
        ("dvc", "dvc restore --scale demo", {}),
    ],
)
def test_a_command_without_its_package_names_the_extra(project, package, command, environment):
    result = project.run("python", "-c", WITHOUT, package, *command.split(), **environment)
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(
        rf"smt: error: this needs {package}, which is not installed; install: "
        rf"pip install 'smt-reproduction\[{EXTRAS[package]}\]'\n",
        result.stderr,
    )


def test_a_package_without_an_extra_is_a_traceback(project):
    result = project.run("python", "-c", WITHOUT, "yaml", "check")
    assert result.returncode == 1 and "ModuleNotFoundError" in result.stderr
