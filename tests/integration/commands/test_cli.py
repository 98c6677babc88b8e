"""The command line: what it loads, what it says to a mistake, and its exit codes."""

import json

import pytest

from tests.helpers import ROOT
from tests.helpers.project_copy import ProjectCopy

SLOW = {"torch", "torchvision", "timm", "mlflow", "pandas", "numpy", "matplotlib", "snakemake"}
RUN = """
import json, sys
from smt.cli import main
try:
    main()
except SystemExit:
    pass
finally:
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return ProjectCopy(tmp_path_factory.mktemp("cli") / "project")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["check"], ["nonsense"], ["train", "nonsense"], ["tables", "--help"]]
)
def test_light_commands_import_no_heavy_package(project, arguments):
    done = project.run("python", "-c", RUN, *arguments)
    assert SLOW.isdisjoint(json.loads(done.stdout.splitlines()[-1])), done.stderr


def test_the_plan_of_the_dag_loads_neither_torch_nor_the_client_of_the_server(project):
    code = "import json, sys, smt.dag; print(json.dumps(sorted(sys.modules)))"
    assert SLOW.isdisjoint(json.loads(project.run("python", "-c", code).stdout))


def test_help_lists_every_command_with_what_it_does(project):
    done = project.smt("--help")
    assert done.returncode == 0
    for command in ("check", "data", "train", "evaluate", "profile", "convert", "sync", "tables",
                    "figures", "verify", "why", "release", "ui"):  # fmt: skip
        assert f"\n  {command} " in done.stdout
    output = " ".join(done.stdout.split())
    assert "5 a recorded value is inconsistent with its source" in output
    assert "75 stopped on request" in output


def test_an_unknown_command_is_one_line_with_the_nearest(project):
    done = project.smt("tabels")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "smt: error: smt: no command 'tabels'; did you mean tables?\n"


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_an_unknown_experiment_is_one_line_with_the_nearest(project, command):
    done = project.smt(command, "imagenet1k_smt_tny")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean imagenet1k_smt_tiny" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--scael", "demo"],
         "No such option '--scael'. "
         "(Did you mean one of: '--help', '--scale'?) (smt check --help)"),
        (["look", "--size", "8", "w", "i"],
         "Invalid value for '--size': 8 is not in the range 32<=x<=4096 (smt look --help)"),
        (["export", "w", "-o", "w.onnx"],
         "Missing option '--format'. Choose from: torch_export, onnx (smt export --help)"),
    ],
)  # fmt: skip
def test_a_mistake_in_options_is_one_line(project, arguments, message):
    done = project.smt(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"smt: error: {message}\n"


def test_data_that_are_missing_have_their_own_exit_code_and_the_command_that_makes_them(project):
    done = project.smt("train", "imagenet1k_smt_tiny", "--scale", "demo")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1 and "smt data" in done.stderr, done.stderr


def test_check_prints_what_each_experiment_trains_without_data(project):
    done = project.smt("check", "--scale", "paper")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    large = rows["imagenet1k_smt_large_384"]
    assert "imagenet22k_to_1k_384  imagenet1k" in large
    assert "imagenet22k_smt_large  0 " in large
    assert "data missing: imagenet1k" in rows["imagenet1k_smt_tiny"]
    assert "0,1,2" in rows["imagenet1k_smt_tiny"]
    assert "data missing: coco, imagenet1k" in rows["coco_dino_smt_small"]
    assert "32 experiments, 64 runs" in done.stdout


def test_check_prints_fingerprints_once_the_data_are_there(project, demo_data):
    done = project.smt("--results", str(demo_data / "results"), "check")
    assert done.returncode == 0 and "data missing" not in done.stdout
    prints = [line.split()[-1] for line in done.stdout.splitlines() if "smt_" in line]
    assert len(prints) == len(set(prints)) == 31
    assert all(len(each) == 12 and int(each, 16) for each in prints)


def test_the_scale_comes_from_the_environment_where_no_option_says_it(project):
    assert "at paper scale" in project.smt("check", SMT_SCALE="paper").stdout
    assert "at demo scale" in project.smt("check").stdout
    assert "at demo scale" in project.smt("check", "--scale", "demo", SMT_SCALE="paper").stdout


def test_any_folder_will_do_where_the_installation_brings_its_params(project, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = project.run("sh", "-c", f"cd {elsewhere} && smt check")
    own = project.run("smt", "--params", str(ROOT / "params"), "check")
    assert (done.returncode, done.stdout) == (0, own.stdout)
