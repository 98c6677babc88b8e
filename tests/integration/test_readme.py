"""Every command in README.md is typed here, and its worked example is followed."""

import re
import subprocess

import pytest

from smt.cli import COMMANDS
from tests.helpers import ROOT
from tests.helpers.project_copy import ProjectCopy

pytestmark = pytest.mark.xdist_group("readme")  # what they share is made once

README = (ROOT / "README.md").read_text()

ELSEWHERE = {
    # command: a test file that runs it, and the place in that file that does
    "make reproduce": ("tests/test_reproduce.py", 'snakemake("all")'),
    "make test": (".ci/run", "make test"),
    "smt train imagenet1k_smt_tiny --seed 0": (
        "tests/test_training.py",
        'smt(project, "train", "imagenet1k_smt_tiny")',
    ),
    "smt evaluate imagenet1k_smt_tiny --seed 0": (
        "tests/test_training.py",
        'smt(project, "evaluate", "imagenet1k_smt_tiny")',
    ),
    "snakemake --profile local proof": ("tests/test_proof.py", 'snakemake("proof")'),
    "smt prove imagenet1k_smt_tiny --kills 20": (
        "tests/test_proof.py",
        '"prove", "imagenet1k_smt_large_224"',
    ),
    "smt train coco_retinanet_smt_small": (
        "tests/test_downstream.py",
        'smt(project, "train", name, "--no-send")',
    ),
    "smt evaluate coco_retinanet_smt_small": (
        "tests/test_downstream.py",
        'smt(project, "evaluate", name)',
    ),
    "smt prove coco_retinanet_smt_small --kills 3": (
        "tests/test_downstream.py",
        '"prove", name, "--kills", "3"',
    ),
    "smt checkpoint results/demo/runs": (
        "tests/test_checkpoint_command.py",
        '"checkpoint", "results"',
    ),
    "smt ui": ("tests/test_ui.py", '"ui"'),
    "smt doctor": ("tests/test_doctor.py", '"doctor"'),
    "snakemake --profile slurm all --config scale=demo": (
        "tests/test_reproduce.py",
        '"snakemake --profile slurm all --config scale=demo"',
    ),
    "snakemake --profile slurm all": (
        "tests/test_reproduce.py",
        '"snakemake --profile slurm all --config scale=demo"',
    ),
    "smt verify": ("tests/test_verify.py", '"verify"'),
    "smt verify --evaluate": ("tests/test_verify.py", '"--evaluate"'),
    'smt why imagenet22k "SMT-L at 384"': ("tests/test_why.py", '"why"'),
    "smt release": ("tests/test_release.py", '"release"'),
    "smt dvc record": ("tests/test_dvc.py", '"dvc", "record"'),
    "smt dvc restore": ("tests/test_dvc.py", '"dvc", "restore"'),
    "smt dvc restore imagenet1k_smt_tiny": ("tests/test_dvc.py", '"dvc", "restore", LARGE'),
    "dvc push": ("tests/test_remotes.py", 'dvc("push")'),
    "dvc repro": ("tests/test_dvc.py", 'dvc("repro")'),
    "dvc params diff": ("tests/test_dvc.py", 'dvc("params", "diff"'),
    "dvc metrics diff": ("tests/test_dvc.py", 'dvc("metrics", "diff"'),
    "dvc plots show": ("tests/test_dvc.py", 'dvc("plots", "show"'),
}
"""Commands that take minutes, or that serve until they are stopped."""

WITHOUT_DATA = {"smt data check --scale paper": 3}
"""Exit codes of commands that need data which are not here."""


def fences(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands(fence):
    """Return the commands of a fence without their comments."""
    lines = (re.sub(r"\s+# .*", "", line) for line in fence.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


FENCES = [commands(fence) for fence in fences("bash")]
EVERY = [command for fence in FENCES for command in fence]


def follow_example(folder):
    """Return a project in which the worked example has been followed."""
    project = ProjectCopy(folder)
    for block in fences("yaml"):
        place, text = block.split("\n", 1)
        file = re.match(r"# params/(\w+\.yaml), ", place)[1]
        if place.endswith("at the end"):
            path = project.folder / "params" / file
            path.write_text(path.read_text() + text)
        else:
            row = '      - {label: "2", experiment: ablation_heads_2}\n'
            project.edit(file, row, row + text)
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return follow_example(tmp_path_factory.mktemp("readme") / "project")


def test_there_is_something_to_run():
    assert len(EVERY) >= 15 and len(fences("yaml")) == 3
    assert set(ELSEWHERE) | set(WITHOUT_DATA) <= set(EVERY)


@pytest.mark.parametrize(
    ("number", "command"),
    [
        (number, command)
        for number, fence in enumerate(FENCES)
        for command in fence
        if command not in ELSEWHERE and not command.startswith("export ")
    ],
)
def test_a_command_does_what_it_is_there_for(project, number, command):
    exports = [line for line in FENCES[number] if line.startswith("export ")]
    done = project.run("bash", "-ec", "\n".join([*exports, command]))
    assert done.returncode == WITHOUT_DATA.get(command, 0), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ELSEWHERE)
def test_a_command_that_takes_long_is_run_elsewhere(command):
    file, place = ELSEWHERE[command]
    assert place in (ROOT / file).read_text()
    if command.startswith("make "):
        target = command.removeprefix("make ")
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_worked_example_adds_one_run_and_its_row(tmp_path):
    project = follow_example(tmp_path / "project")
    assert project.plan("ablation_heads_3").trainings == {("ablation_heads_3", 0): "ablation"}
    table = project.plan("results/demo/tables/ablation_heads.md")
    assert "ablation_heads_3" in table.experiments
    assert project.smt("tables", "ablation_heads").returncode == 0
    text = (project.folder / "results/demo/tables/ablation_heads.md").read_text()
    assert re.search(r"^\| 3 \|.*pending", text, re.M)


def test_commands_in_the_text_exist():
    inline = set(re.findall(r"`((?:make|smt) [a-z]+)[^`]*`", README))
    assert inline
    for command in inline:
        program, name = command.split()
        if program == "smt":
            assert name in COMMANDS
        else:
            subprocess.run(["make", "--dry-run", name], cwd=ROOT, check=True, capture_output=True)


def test_the_python_in_it_runs():
    (block,) = fences("python")
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["backbone"].feature_info.reduction() == [4, 8, 16, 32]


def test_what_it_points_to_is_there():
    assert (ROOT / "docs" / "dag.svg").read_text().count("<svg") == 1
    for path in re.findall(r"`((?:smt|params|workflow|benchmarks|docs)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path


def test_the_picture_of_the_dag_shows_every_rule_that_makes_something():
    picture = (ROOT / "docs" / "dag.svg").read_text()
    rules = {
        name
        for file in (ROOT / "workflow" / "rules").glob("*.smk")
        if file.name not in ("targets.smk", "proof.smk")  # a proof is no part of `all`
        for name in re.findall(r"^(?:rule|use rule \w+ as) (\w+)", file.read_text(), re.M)
    }
    assert len(rules) >= 10
    assert rules <= set(re.findall(r">([\w ]+)</text>", picture))


FILL = ["python", str(ROOT / "docs" / "fill_readme.py")]


def test_the_tables_of_the_demo_go_between_the_markers(project, tmp_path):
    assert project.smt("tables").returncode == 0
    readme = tmp_path / "README.md"
    readme.write_text(README)
    tables = str(project.folder / "results/demo/tables")
    assert project.run(*FILL, str(readme), tables).returncode == 0
    filled = readme.read_text()
    assert "### ImageNet-1K\n" in filled and "### Drift\n" in filled
    assert "demo scale: not comparable with the paper" in filled
    assert filled.split("<!-- demo tables")[0] == README.split("<!-- demo tables")[0]
    assert project.run(*FILL, str(readme), tables).returncode == 0
    assert readme.read_text() == filled


def test_links_to_a_server_of_ones_own_are_left_out_of_the_tables(project, tmp_path):
    link = "(http://127.0.0.1:5000/#/runs?a=%5B1%5D)"
    (tmp_path / "index.md").write_text("- [Results](results.md): 1 done\n")
    (tmp_path / "results.md").write_text(
        "# Results\n\n| Variant | Reported | Top-1 | Runs |\n| --- | --- | ---: | --- |\n"
        f"| a \\| b | 82.2 \\[a\\] | [61.57 ± 1.94]{link} | [seed 0]{link} |\n\n"
        "\\[a\\] [The paper](https://example.org/paper).\n"
    )
    readme = tmp_path / "README.md"
    readme.write_text("<!-- demo tables: begin -->\nold\n<!-- demo tables: end -->\n")
    assert project.run(*FILL, str(readme), str(tmp_path)).returncode == 0
    assert readme.read_text() == (
        "<!-- demo tables: begin -->\n\n### Results\n\n"
        "| Variant | Reported | Top-1 |\n| --- | --- | ---: |\n"
        "| a \\| b | 82.2 \\[a\\] | 61.57 ± 1.94 |\n\n"
        "\\[a\\] [The paper](https://example.org/paper).\n\n<!-- demo tables: end -->\n"
    )


def test_without_markers_or_tables_it_is_one_line(project, tmp_path):
    (tmp_path / "README.md").write_text("# Bare\n")
    done = project.run(*FILL, str(tmp_path / "README.md"), str(tmp_path))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "make reproduce, then make docs" in done.stderr
