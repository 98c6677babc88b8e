"""Every command in a shell block of the documents is run, in a project with its prerequisites.

NEEDS has the prerequisites of each. Commands that read or plan run in `make test`; those that
train, serve or submit run in `make test-all`.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from smt.errors import EXIT_BAD_INPUT, EXIT_DATA
from testbed.waiting import PATIENCE, wait_for_answer
from tests.helpers import ROOT, forkserver
from tests.helpers.documents import Command, commands, follow_example, unnamed_blocks
from tests.helpers.finished_project import CHILD, RUNS, run_dir
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.shrink import keep
from tests.helpers.small_scale import make_small
from tests.helpers.small_suite import Suite, add_environment
from tests.helpers.versioned import SCALE, Versioned

pytestmark = pytest.mark.xdist_group("documents")  # what they share is made once


@dataclass(frozen=True)
class Need:
    """The prerequisites of a command, and its expected exit code."""

    where: str
    """Name of the fixture that gives its project."""
    code: int = 0
    without: tuple[str, int] | None = None
    """Experiment and seed whose results are removed before, where the project has them."""
    serves: bool = False
    """It is a server, and is stopped by the test."""
    kills: bool = False
    """It sends signals to its child processes, which then are new processes instead of forks."""
    marks: tuple[pytest.MarkDecorator, ...] = (pytest.mark.slow,)


def needs_params(code: int = 0) -> Need:
    """Params alone, without data and results. Runs in `make test`."""
    return Need("bare", code, marks=())


def needs_small_scales() -> Need:
    """Params of two experiments, whose scales are of smoke scale's size."""
    return Need("small_scales")


def needs_results(without: str | None = None) -> Need:
    """A finished project at smoke scale, recorded in DVC."""
    return Need("finished_copy", without=without and (without, 0))


def reads_results() -> Need:
    """The same for a command of a few seconds: it runs in `make test`."""
    return Need("finished_copy", marks=())


def needs_a_clone() -> Need:
    """A clone of that project, with access to its DVC remote."""
    return Need("clone")


def needs_a_checkout() -> Need:
    """A checkout with Makefile and environment, in which the demo is of smoke scale's size."""
    return Need("checkout")


def needs_a_suite() -> Need:
    """A checkout whose tests are four, one of each kind."""
    return Need("suite")


def needs_slurm() -> Need:
    """A project on a cluster, whose scales are of smoke scale's size."""
    return Need("on_cluster", marks=(pytest.mark.slow, pytest.mark.cluster))


def needs_a_server() -> Need:
    """A finished project; the command answers at a port of the test's own, and is stopped."""
    return Need("finished_copy", serves=True, marks=(pytest.mark.slow, pytest.mark.servers))


RETINANET = "coco_retinanet_smt_small"
SMT_T = "imagenet1k_smt_tiny"

NEEDS = {
    "make demo": needs_a_checkout(),
    "make reproduce": needs_a_checkout(),
    "make check": needs_a_suite(),
    "make test": needs_a_suite(),
    "make test-all": needs_a_suite(),
    "make docs": Need("with_documents"),
    "smt check": needs_params(),
    "snakemake --profile local -n all": needs_params(),
    "snakemake --profile local -n tables": needs_params(),
    f"snakemake --profile local -n {SMT_T}": needs_params(),
    "snakemake --profile local -n results/demo/tables/imagenet22k.md": needs_params(),
    f"snakemake --profile local -n results/demo/runs/{SMT_T}/seed0/metrics.json": needs_params(),
    "snakemake --profile local -n detection segmentation": needs_params(),
    "snakemake --profile local -n ablation_heads_3": needs_params(),
    "snakemake -n all --config scale=paper": needs_params(),
    "smt sync": needs_params(),
    "smt tables": needs_params(),
    "smt tables --frame results.parquet": needs_params(),
    "smt figures": needs_params(),
    "smt report": needs_params(),
    "smt profile --scale paper": Need("bare"),
    "smt profile --update": Need("bare"),
    "smt data check --scale paper": needs_params(EXIT_DATA),
    "smt data pack imagenet22k --scale paper": needs_params(EXIT_DATA),
    "smt plan": needs_params(),
    "smt plan --claims --scale paper": needs_params(),
    "smt plan --claims mhmc_gain,saa_gain --spread 0.15 --scale paper": needs_params(),
    "smt plan --gpu-hours 5000 --scale paper": needs_params(),
    "smt plan --scale short": needs_params(),
    "smt plan --memory": needs_small_scales(),
    "smt plan --memory --gpu rtx4090": needs_small_scales(),
    "snakemake --profile local rehearse --config scale=paper": needs_small_scales(),
    "smt status": needs_params(),
    "smt doctor": needs_slurm(),
    "snakemake --profile slurm all --config scale=demo": needs_slurm(),
    "snakemake --profile slurm all": needs_slurm(),
    f"smt train {RETINANET}": needs_results(without=RETINANET),
    f"smt evaluate {RETINANET}": needs_results(),
    f"smt rehearse {SMT_T}": needs_params(),
    f"smt prove {RETINANET} --kills 3": replace(needs_results(), kills=True),
    f"smt train {SMT_T} --seed 0": needs_results(without=SMT_T),
    f"smt evaluate {SMT_T} --seed 0": needs_results(),
    "smt ui": needs_a_server(),
    "smt ui ablation_heads": needs_a_server(),
    f"smt ui {SMT_T}-seed0 imagenet1k_smt_small-seed0": needs_a_server(),
    "snakemake --profile local proof": replace(needs_a_checkout(), kills=True),
    f"smt prove {SMT_T} --kills 20": Need("longer_runs", kills=True),
    # The authors' files are not at hand: it says so in one line, before anything runs.
    "smt evaluate --released smt_tiny.pth --model smt_tiny": needs_params(EXIT_BAD_INPUT),
    "smt evaluate --released smt_tiny.pth --model smt_tiny --data FOLDER": needs_params(
        EXIT_BAD_INPUT
    ),
    "smt evaluate imagenet1k_smt_large_384 --released smt_large_384.pth": needs_params(
        EXIT_BAD_INPUT
    ),
    "smt evaluate --released smt_tiny.pth --model smt_tiny --images 2000": needs_params(
        EXIT_BAD_INPUT
    ),
    "smt checkpoint results/demo/runs": reads_results(),
    f"smt sync --register --experiment {SMT_T}": reads_results(),
    "smt verify": needs_results(),
    "smt verify --evaluate": needs_results(),
    f"smt audit {SMT_T}": needs_results(),
    f"smt audit {SMT_T} --seed 0": needs_results(),
    f"smt audit {SMT_T} --segments all": needs_results(),
    f"smt audit {SMT_T} --draw 7": needs_results(),
    'smt why imagenet22k "SMT-L at 384"': reads_results(),
    f"smt why imagenet1k {SMT_T}": reads_results(),
    "smt release": needs_results(),
    "smt dvc record": reads_results(),
    "dvc push": reads_results(),
    "dvc repro": needs_results(),
    "smt dvc restore": needs_a_clone(),
    f"smt dvc restore {SMT_T}": needs_a_clone(),
    "dvc params diff": reads_results(),
    "dvc metrics diff": reads_results(),
    "dvc plots show": reads_results(),
}

COMMANDS = {command.text: command for command in reversed(commands())}


# --- where they run -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A folder and an environment in which commands are run."""

    folder: Path
    environment: Mapping[str, str]

    def without_forks(self) -> "Place":
        """Return the same place, where every command is a new process."""
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        variables = {
            name: value for name, value in self.environment.items() if name != forkserver.COMMANDS
        }
        return Place(self.folder, {**variables, "PATH": path})

    def type(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euc", script],
            cwd=self.folder, env=self.environment, capture_output=True, text=True,
        )  # fmt: skip


def forked(project: ProjectCopy, **environment: str) -> Place:
    """Return a place where commands, and those that they start, run as forks."""
    env = forkserver.with_forked_commands(project.environment(**environment))
    return Place(project.folder, env)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return forked(follow_example(ProjectCopy(tmp_path_factory.mktemp("bare") / "project")))


@pytest.fixture(scope="module")
def small_scales(tmp_path_factory):
    project = ProjectCopy(tmp_path_factory.mktemp("small_scales") / "project")
    keep(project.folder / "params", {SMT_T, RETINANET})
    for scale in ("demo", "paper"):
        make_small(project.folder / "params", scale)
    return forked(project)


@pytest.fixture
def finished_copy(finished, tmp_path):
    project = finished.copied(tmp_path / "project")
    (project.folder / "results" / "demo").symlink_to(SCALE)  # where the README has them
    yield forked(project)
    shutil.rmtree(project.folder)


@pytest.fixture
def longer_runs(finished, tmp_path):
    """A copy in which SMT-T has 80 steps to be killed in, where scale smoke has 20."""
    project = finished.copied(tmp_path / "project")
    schedule = {"imagenet1k": {"schedule": {"epochs": 8}}}
    project.change("scales.yaml", lambda content: content[SCALE]["recipes"].update(schedule))
    return forked(project)


@pytest.fixture
def clone(finished, tmp_path):
    project = finished.cloned(tmp_path / "project")
    (project.folder / "dvc-remote").symlink_to(finished.folder / "dvc-remote")
    return forked(project)


@pytest.fixture
def checkout(tmp_path):
    """Some of every kind of experiment are left, all that `make demo` trains among them."""
    project = Versioned(tmp_path / "project")
    keep(project.folder / "params", {name for name, _ in RUNS} - {CHILD})
    make_small(project.folder / "params", "demo")
    add_environment(project.folder)
    place = forked(project, SMT_SCALE="demo")
    commands = Path(place.environment[forkserver.COMMANDS])
    for path in commands.iterdir():
        (project.folder / ".venv/bin" / path.name).symlink_to(path)
    return place


@pytest.fixture
def with_documents(checkout):
    """The same, with the documents that a site is made of."""
    shutil.copytree(ROOT / "docs", checkout.folder / "docs", dirs_exist_ok=True)
    shutil.copy(ROOT / "mkdocs.yml", checkout.folder)
    return checkout


@pytest.fixture
def suite(tmp_path):
    project = Suite(tmp_path / "project")
    return Place(project.folder, project.environment())


@pytest.fixture(scope="module")
def on_cluster(tmp_path_factory, cluster):
    project = ProjectCopy(tmp_path_factory.mktemp("on_cluster") / "project")
    keep(project.folder / "params", {SMT_T})
    for scale in ("demo", "paper"):
        make_small(project.folder / "params", scale)
    return Place(project.folder, _with(project, cluster))


def _with(project, cluster):
    path = project.environment()["PATH"]
    return {**project.environment(**cluster.environment()), "PATH": path}


# --- running them ---------------------------------------------------------------------------------


def test_every_command_of_the_documents_is_tested():
    missing = [
        f"{command.place}: {command.text}"
        for text, command in COMMANDS.items()
        if text not in NEEDS
    ]
    assert not missing, "add these to NEEDS"
    assert set(NEEDS) <= set(COMMANDS), "remove these from NEEDS: no document has them"
    assert len(COMMANDS) > 40
    assert not unnamed_blocks()


CASES = [
    pytest.param(command, need, id=text, marks=need.marks)
    for text, command in COMMANDS.items()
    if (need := NEEDS.get(text)) is not None
]


@pytest.mark.parametrize(("command", "need"), CASES)
def test_a_command_of_the_documents_works(command: Command, need: Need, request):
    place: Place = request.getfixturevalue(need.where)
    if need.without:
        shutil.rmtree(run_dir(place, *need.without))
    if need.kills or need.serves:
        place = place.without_forks()
    if need.serves:
        _answers(command, place)
        return
    result = place.type(command.script)
    assert result.returncode == need.code, f"{command.place}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    if need.without:
        assert (run_dir(place, *need.without) / "metrics.json").exists()


def _answers(command, place):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = place.folder / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-euc", f"exec {command.text} --port {port}"],
            cwd=place.folder, env=place.environment, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/health", process, log)
    finally:
        process.terminate()
        process.wait(PATIENCE)
