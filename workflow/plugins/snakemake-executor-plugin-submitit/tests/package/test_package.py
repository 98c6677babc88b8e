"""The package as a user gets it: built, installed in an empty environment, and run from there."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
OLDEST = [line.split(",")[0].replace(">=", "==") for line in PYPROJECT["dependencies"]]
"""The lower bounds of all dependencies."""
README = (PROJECT / "README.md").read_text()
PYTHONS = [f"3.{minor}" for minor in (11, 12, 13)]


def run(*command, **settings):
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, **settings)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """A folder with wheel and sdist, built from a copy of the project."""
    copy = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    run(sys.executable, "-m", "hatchling", "build", "-d", copy / "dist", cwd=copy)
    return copy / "dist"


def test_the_wheel_has_code_and_licence_but_no_tests(distributions):
    (wheel,) = distributions.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    code = {f"snakemake_executor_plugin_submitit/{path.relative_to(PROJECT / 'src').name}"
            for path in (PROJECT / "src").glob("*/*.py")}  # fmt: skip
    assert code <= set(names) and "snakemake_executor_plugin_submitit/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "test" in name]


def test_the_sdist_has_tests_documents_and_example(distributions):
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "docs/intro.md", "docs/further.md",
            "tests/testbed/slurm/cluster.py", "example/Snakefile"} <= names  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.parametrize("bounds", ["oldest", "newest"])
def test_the_example_runs_in_a_new_environment(distributions, tmp_path, cluster, bounds, version):
    """In local processes, then on SLURM, outside of the project.

    With the newest versions of the dependencies, and with their lower bounds.
    """
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", "import venv"]).returncode:
        pytest.skip(f"no Python {version}")
    (wheel,) = distributions.glob("*.whl")
    run(python, "-m", "venv", tmp_path / "venv")
    programs = tmp_path / "venv" / "bin"
    run(programs / "pip", "install", "-q", wheel, *(OLDEST if bounds == "oldest" else ()))
    variables = {
        name: value for name, value in cluster.environment().items() if name != "PYTHONPATH"
    }
    environment = {**variables, "PATH": f"{programs}{os.pathsep}{variables['PATH']}"}
    starts = {
        "local": "snakemake --executor submitit --jobs 4 --submitit-cluster local",
        "slurm": re.search(r"^snakemake --executor submitit .*$", README, flags=re.M)[0],
    }
    for place, start in starts.items():
        folder = tmp_path / place
        shutil.copytree(PROJECT / "example", folder)
        assert "(100%) done" in run(*start.split(), cwd=folder, env=environment)
        assert "Nothing to be done" in run(*start.split(), cwd=folder, env=environment)
