"""What the targets of the Makefile do and never do, and the lock that it installs from."""

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


def test_make_alone_lists_every_target_that_is_no_file(clone):
    done = make(clone)
    assert done.returncode == 0
    listed = re.findall(r"^  ([a-z-]+) +\w", done.stdout, re.M)
    (phony,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)", (clone / "Makefile").read_text(), re.M)
    assert sorted(listed) == sorted(phony.replace("\\", "").split())


# --- make env -------------------------------------------------------------------------------------


def test_without_python_3_11_nothing_is_made_and_the_packages_are_named(clone):
    done = make(clone, "env", "PYTHON=python-of-another-age")
    assert done.returncode == 2
    assert "python-of-another-age" in done.stderr and "python3.11-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_without_venv_nothing_is_made_and_the_package_is_named(clone, tmp_path):
    """Debian's python3.11 comes without ensurepip."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "ensurepip.py").write_text("raise ImportError\n")
    done = make(clone, "env", f"PYTHON={sys.executable}", PYTHONPATH=str(broken))
    assert done.returncode == 2
    assert "python3.11-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_an_installed_environment_is_left_alone_until_the_lock_changes(clone):
    (clone / ".venv").mkdir()
    (clone / ".venv" / "installed").touch()
    assert make(clone, "--question", "env").returncode == 0
    os.utime(clone / "requirements.lock", (2**31, 2**31))
    assert make(clone, "--question", "env").returncode == 1


@pytest.mark.parametrize("code", [0, 1])
def test_what_pip_says_goes_to_a_log_and_its_end_is_shown_if_it_fails(clone, code):
    (clone / ".venv" / "bin").mkdir(parents=True)
    lines = "for number in $(seq 1 300); do echo line $number; done"
    write_program(clone / ".venv/bin/pip", f"{lines}; exit {code}")
    done = make(clone, "env", f"PYTHON={sys.executable}")
    said = done.stdout + done.stderr
    log = clone / ".venv" / "install.log"
    assert "line 300\n" in log.read_text() and ".venv/install.log" in said
    assert (done.returncode, (clone / ".venv/installed").exists()) == (
        (2, False) if code else (0, True)
    )
    assert ("line 300" in done.stderr) == bool(code) and len(said.splitlines()) < 12


# --- make demo, make reproduce --------------------------------------------------------------------


@pytest.mark.parametrize("target", ["demo", "reproduce"])
def test_snakemake_understands_what_it_is_asked(target, tmp_path):
    done = make(ROOT, "--dry-run", "--always-make", target)
    (line,) = [each for each in done.stdout.splitlines() if each.startswith("snakemake ")]
    asked = ProjectCopy(tmp_path / "project").module("snakemake", *line.split()[1:], "--dry-run")
    assert asked.returncode == 0, asked.stderr


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
    done = suite.run("make", target, IN_ONE_PROCESS)
    assert done.returncode == 0, done.stdout + done.stderr
    called = suite.called()
    assert tuple(called[: len(before)]) == before
    assert sorted(called[len(before) :]) == sorted(tests)


def test_lint_runs_every_check_whatever_the_others_find_and_then_fails(suite):
    suite.add_program("mypy", f"{suite.note('mypy')}; exit 1")
    assert suite.run("make", "lint").returncode != 0
    assert tuple(suite.called()) == LINT
    assert suite.run("make", "check").returncode != 0
    assert tuple(suite.called()) == LINT  # and no test


def test_a_failed_test_fails_what_ran_it(suite):
    (suite.folder / "tests/unit/test_unit_quick.py").write_text("def test_it():\n    assert 0\n")
    for target in ("check", "test", "test-all"):
        assert suite.run("make", target, IN_ONE_PROCESS).returncode != 0


def test_continuous_integration_runs_lint_and_then_what_make_test_runs(suite, tmp_path):
    """With CI set, so that a test that needs a server fails without it."""
    script = suite.folder / ".ci" / "run"
    script.parent.mkdir()
    shutil.copy(ROOT / ".ci" / "run", script)
    machine = tmp_path / "machine"  # all that it installs where it is missing is there
    machine.mkdir()
    write_program(machine / "python3.11", f'exec {sys.executable} "$@"')
    path = f"{machine}{os.pathsep}{os.environ['PATH']}"
    done = suite.run(str(script), PATH=path, MAKEFLAGS=f"{IN_ONE_PROCESS!r}")
    assert done.returncode == 0, done.stdout + done.stderr
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
def test_servers_are_installed_from_debian_where_they_are_missing(
    without_servers, target, tmp_path
):
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
    done = without_servers.run("make", "test", IN_ONE_PROCESS)
    assert done.returncode == 0
    assert "munge slurmd" in done.stderr  # what to install
    assert set(without_servers.called()) == {"unit_quick", "integration_quick"}
    assert without_servers.run("make", "slurm").returncode != 0


# --- make clean, requirements.lock ----------------------------------------------------------------


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
    wanted = chain(project["dependencies"], *project["optional-dependencies"].values())
    pinned = {_plain(line.split("==")[0]) for line in LOCK}
    named = {_plain(re.match(r"[\w.-]+", each)[0]) for each in wanted}
    # The executor lies in workflow/; extras name extras of the project itself.
    assert named - {"snakemake-executor-plugin-submitit", "smt-reproduction"} <= pinned
    assert {"hatchling", "editables"} <= pinned  # what builds the project itself


def _plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()
