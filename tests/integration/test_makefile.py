"""The Makefile: what it says, and what it never removes; the lock that it installs from."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib

import pytest

from tests.helpers import ROOT

LINES = (ROOT / "requirements.lock").read_text().splitlines()
LOCK = [line for line in LINES if line and not line.startswith("#")]


@pytest.fixture
def clone(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("smt", "tests", "workflow", "benchmarks"):
        (tmp_path / name).mkdir()
    return tmp_path


def make(folder, *arguments, **environment):
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_make_alone_says_what_there_is(clone):
    done = make(clone)
    assert done.returncode == 0
    for target in ("env", "reproduce", "test", "lint", "clean", "docs"):
        assert re.search(rf"^  {target} +\w", done.stdout, re.M)


def test_without_python_3_11_it_says_what_to_install(clone):
    done = make(clone, "env", "PYTHON=python-of-another-age")
    assert done.returncode != 0
    assert "python-of-another-age is not Python 3.11" in done.stderr
    assert "sudo apt-get install python3.11 python3.11-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_without_venv_it_says_what_to_install(clone, tmp_path):
    """Debian's python3.11 comes without ensurepip."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "ensurepip.py").write_text("raise ImportError\n")
    done = make(clone, "env", PYTHONPATH=str(broken))
    assert done.returncode != 0
    assert "Install: sudo apt-get install python3.11-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_an_installed_environment_is_left_alone_until_the_lock_changes(clone):
    (clone / ".venv").mkdir()
    (clone / ".venv" / "installed").touch()
    assert "Nothing to be done" in make(clone, "env").stdout
    os.utime(clone / "requirements.lock", (2**31, 2**31))
    assert "pip install" in make(clone, "--dry-run", "env").stdout


@pytest.fixture
def programs(clone):
    """The folder of what stands for this environment's programs; python says what is missing."""
    programs = clone / ".venv" / "bin"
    programs.mkdir(parents=True)
    os.utime(clone / "requirements.lock", (1, 1))
    os.utime(clone / "pyproject.toml", (1, 1))
    (clone / ".venv" / "installed").touch()
    _program(programs / "python", "echo munge slurmd")
    _program(programs / "sudo", 'shift; exec "$@"')
    _program(programs / "apt-get", f'echo "$@" >> {clone}/apt-get.log')
    _program(programs / "pytest", 'echo "pytest $*"')
    return programs


def _program(path, line):
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("target", "what"), [("slurm", "SLURM is"), ("test", "programs that tests start are")]
)
def test_servers_are_installed_from_debian_where_they_are_missing(clone, programs, target, what):
    done = make(clone, target)
    assert done.returncode == 0
    assert f"{what} not installed, installing Debian's munge slurmd" in done.stdout
    said = (clone / "apt-get.log").read_text()
    assert said.splitlines()[-1].endswith("install munge slurmd")
    _program(programs / "python", "echo")
    make(clone, target)
    assert (clone / "apt-get.log").read_text() == said


@pytest.mark.parametrize("fails", ["apt-get", "sudo"])
def test_tests_run_without_servers_if_they_cannot_be_installed(clone, programs, fails):
    if fails == "sudo":
        _program(programs / "id", "echo 1000")
    _program(programs / fails, "exit 1")
    done = make(clone, "test")
    assert done.returncode == 0
    assert "Install: sudo apt-get install munge slurmd" in done.stderr
    assert "tests that need them will be reported as not run, by name" in done.stderr
    assert "pytest -n 3 --dist loadgroup --no-fold-skipped" in done.stdout
    assert make(clone, "slurm").returncode != 0


@pytest.mark.parametrize("target", ["clean", "distclean"])
def test_cleaning_never_touches_results_and_data(clone, target):
    kept = ["results/demo/metrics.json", "data/demo/image.png", ".snakemake/metadata/x",
            "local/work.yaml"]  # fmt: skip
    gone = [".mypy_cache/x", ".pytest_cache/x", "smt/__pycache__/x.pyc", ".ruff_cache/x"]
    for name in (*kept, *gone, ".venv/bin/x"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    assert make(clone, target).returncode == 0
    assert all((clone / name).exists() for name in kept)
    assert not any((clone / name).exists() for name in gone)
    assert (clone / ".venv").exists() == (target == "clean")


def test_the_lock_holds_pinned_names_and_nothing_else():
    pin = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; [\w\s\"=]+)?")
    assert len(LOCK) > 200
    assert [line for line in LOCK if not pin.fullmatch(line)] == []


def test_the_lock_is_the_environment_that_these_tests_run_in():
    pinned = dict(line.split(" ;")[0].split("==") for line in LOCK)
    installed = {name: importlib.metadata.version(name) for name in pinned if _is_installed(name)}
    assert {name: pinned[name] for name in installed} == installed
    without_marker = {line.split("==")[0] for line in LOCK if " ;" not in line}
    assert without_marker <= set(installed)


def _is_installed(name):
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_the_lock_pins_all_that_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    pinned = {_plain(line.split("==")[0]) for line in LOCK}
    assert {_plain(re.match(r"[\w.-]+", each)[0]) for each in wanted} <= pinned
    assert {"hatchling", "editables"} <= pinned  # what builds the project itself


def _plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_continuous_integration_runs_the_tests_and_the_lint():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    assert lines[-3:] == ["make servers", "make test", "make lint"]
    assert any(line.startswith("export CI=1") for line in lines)
    assert "set -euo pipefail" in lines
