"""Targets of the Makefile, and the lock file that it installs from."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain

import pytest

from tests.helpers import ROOT
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.small_suite import KINDS, LINT, Suite, write_program

LINES = (ROOT / "requirements.lock").read_text().splitlines()
LOCK = [line for line in LINES if line and not line.startswith("#")]


@pytest.fixture
def clone(tmp_path):
    """A checkout in which nothing is installed."""
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


def test_make_without_a_target_lists_the_targets(clone):
    result = make(clone)
    assert result.returncode == 0
    listed = re.findall(r"^  ([a-z-]+) +\w", result.stdout, re.M)
    (phony,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)", (clone / "Makefile").read_text(), re.M)
    assert sorted(listed) == sorted(phony.replace("\\", "").split())


# --- make env -------------------------------------------------------------------------------------


def test_without_python_3_11_the_packages_to_install_are_named(clone):
    result = make(clone, "env", "PYTHON=python-of-another-age")
    assert result.returncode == 2
    assert "python-of-another-age" in result.stderr and "python3.11-venv" in result.stderr
    assert not (clone / ".venv").exists()


def test_without_venv_the_package_to_install_is_named(clone, tmp_path):
    """Debian's python3.11 comes without ensurepip."""
    without_ensurepip = tmp_path / "broken"
    without_ensurepip.mkdir()
    (without_ensurepip / "ensurepip.py").write_text("raise ImportError\n")
    result = make(clone, "env", f"PYTHON={sys.executable}", PYTHONPATH=str(without_ensurepip))
    assert result.returncode == 2
    assert "python3.11-venv" in result.stderr
    assert not (clone / ".venv").exists()


def test_an_environment_is_reinstalled_only_after_the_lock_changes(clone):
    (clone / ".venv").mkdir()
    (clone / ".venv" / "installed").touch()
    assert make(clone, "--question", "env").returncode == 0
    os.utime(clone / "requirements.lock", (2**31, 2**31))
    assert make(clone, "--question", "env").returncode == 1


@pytest.mark.parametrize("code", [0, 1])
def test_the_output_of_pip_is_logged_and_its_end_shown_on_failure(clone, code):
    (clone / ".venv" / "bin").mkdir(parents=True)
    lines = "for number in $(seq 1 300); do echo line $number; done"
    write_program(clone / ".venv/bin/pip", f"{lines}; exit {code}")
    result = make(clone, "env", f"PYTHON={sys.executable}")
    output = result.stdout + result.stderr
    log = clone / ".venv" / "install.log"
    assert "line 300\n" in log.read_text() and ".venv/install.log" in output
    assert (result.returncode, (clone / ".venv/installed").exists()) == (
        (2, False) if code else (0, True)
    )
    assert ("line 300" in result.stderr) == bool(code) and len(output.splitlines()) < 12


# --- make demo, make reproduce --------------------------------------------------------------------


@pytest.mark.parametrize("target", ["demo", "reproduce"])
def test_the_command_of_a_target_is_valid_for_snakemake(target, tmp_path):
    result = make(ROOT, "--dry-run", "--always-make", target)
    (line,) = [text for text in result.stdout.splitlines() if text.startswith("snakemake ")]
    dry_run = ProjectCopy(tmp_path / "project").module("snakemake", *line.split()[1:], "--dry-run")
    assert dry_run.returncode == 0, dry_run.stderr


# --- make check, make test, make test-all ---------------------------------------------------------


@pytest.fixture
def suite(tmp_path):
    return Suite(tmp_path / "project")


IN_ONE_PROCESS = "WORKERS=-p no:xdist"


@pytest.mark.parametrize(
    ("target", "before", "tests"),
    [
        ("check", LINT, {"unit_quick"}),
        ("test", (), {"unit_quick", "integration_quick"}),
        ("test-all", (), set(KINDS)),
    ],
)
def test_what_each_target_runs(suite, target, before, tests):
    result = suite.run("make", target, IN_ONE_PROCESS)
    assert result.returncode == 0, result.stdout + result.stderr
    called = suite.called()
    assert tuple(called[: len(before)]) == before
    assert sorted(called[len(before) :]) == sorted(tests)


def test_lint_runs_every_check_and_fails_if_one_fails(suite):
    suite.add_program("mypy", f"{suite.note('mypy')}; exit 1")
    assert suite.run("make", "lint").returncode != 0
    assert tuple(suite.called()) == LINT
    assert suite.run("make", "check").returncode != 0
    assert tuple(suite.called()) == LINT  # and no test


def test_a_failed_test_fails_every_test_target(suite):
    (suite.folder / "tests/unit/test_unit_quick.py").write_text("def test_it():\n    assert 0\n")
    for target in ("check", "test", "test-all"):
        assert suite.run("make", target, IN_ONE_PROCESS).returncode != 0


def test_continuous_integration_runs_lint_and_the_tests_of_make_test(suite, tmp_path):
    """With CI set, so that a test that needs a server fails without it."""
    script = suite.folder / ".ci" / "run"
    script.parent.mkdir()
    shutil.copy(ROOT / ".ci" / "run", script)
    machine = tmp_path / "machine"  # with all that the script would install
    machine.mkdir()
    write_program(machine / "python3.11", f'exec {sys.executable} "$@"')
    path = f"{machine}{os.pathsep}{os.environ['PATH']}"
    result = suite.run(str(script), PATH=path, MAKEFLAGS=f"{IN_ONE_PROCESS!r}")
    assert result.returncode == 0, result.stdout + result.stderr
    called = suite.called()
    assert tuple(called[: len(LINT)]) == LINT
    assert sorted(called[len(LINT) :]) == ["integration_quick1", "unit_quick1"]
    suite.add_program("mypy", "exit 1")
    assert suite.run(str(script), PATH=path).returncode != 0
    assert not {"integration_quick1", "unit_quick1"} & set(suite.called())


# --- make slurm, make servers ---------------------------------------------------------------------


@pytest.fixture
def without_servers(suite, tmp_path):
    """The checkout, on a machine where two packages are missing that apt-get would install."""
    suite.add_program("python", "echo munge slurmd")
    suite.add_program("sudo", 'shift; exec "$@"')
    suite.add_program("apt-get", f'echo "$@" >> {tmp_path}/apt-get.log')
    return suite


@pytest.mark.parametrize("target", ["slurm", "servers", "test"])
def test_missing_servers_are_installed_from_debian(without_servers, target, tmp_path):
    log = tmp_path / "apt-get.log"
    assert without_servers.run("make", target, IN_ONE_PROCESS).returncode == 0
    installed = log.read_text()
    assert installed.splitlines()[-1].endswith("install munge slurmd")
    without_servers.add_program("python", "")
    assert without_servers.run("make", target, IN_ONE_PROCESS).returncode == 0
    assert log.read_text() == installed


@pytest.mark.parametrize("fails", ["apt-get", "sudo"])
def test_tests_run_without_servers_if_they_cannot_be_installed(without_servers, fails):
    if fails == "sudo":
        without_servers.add_program("id", "echo 1000")
    without_servers.add_program(fails, "exit 1")
    result = without_servers.run("make", "test", IN_ONE_PROCESS)
    assert result.returncode == 0
    assert "munge slurmd" in result.stderr  # what to install
    assert set(without_servers.called()) == {"unit_quick", "integration_quick"}
    assert without_servers.run("make", "slurm").returncode != 0


# --- make clean, requirements.lock ----------------------------------------------------------------


@pytest.mark.parametrize("target", ["clean", "distclean"])
def test_cleaning_never_touches_results_and_data(clone, target):
    permanent = ["results/demo/metrics.json", "data/demo/image.png", ".snakemake/metadata/x",
            "local/work.yaml"]  # fmt: skip
    removed = [".mypy_cache/x", ".pytest_cache/x", "smt/__pycache__/x.pyc", ".ruff_cache/x"]
    for name in (*permanent, *removed, ".venv/bin/x"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    assert make(clone, target).returncode == 0
    assert all((clone / name).exists() for name in permanent)
    assert not any((clone / name).exists() for name in removed)
    assert (clone / ".venv").exists() == (target == "clean")


def test_every_line_of_the_lock_is_a_pin():
    pin = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; [\w\s\"=]+)?")
    assert len(LOCK) > 200
    assert [line for line in LOCK if not pin.fullmatch(line)] == []


def test_the_lock_equals_the_installed_environment():
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


def test_the_lock_pins_every_requirement_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = chain(project["dependencies"], *project["optional-dependencies"].values())
    pinned = {normalized(line.split("==")[0]) for line in LOCK}
    names = {normalized(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}
    # The executor lies in workflow/; extras name extras of the project itself.
    assert names - {"snakemake-executor-plugin-submitit", "smt-reproduction"} <= pinned
    assert {"hatchling", "editables"} <= pinned  # what builds the project itself


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()
