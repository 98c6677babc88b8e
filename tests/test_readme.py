"""Every command in README.md is typed here, and its worked example is followed."""

import re
import subprocess

import pytest
from project_copy import ROOT, ProjectCopy

from smt.cli import COMMANDS

README = (ROOT / "README.md").read_text()

ELSEWHERE = {
    # command: a test file that runs it, and the place in that file that does
    "make reproduce": ("tests/test_reproduce.py", 'snakemake("all")'),
    "make test": (".ci/run", "make test"),
}
"""Commands that take minutes."""

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
def test_a_command_that_takes_minutes_is_run_elsewhere(command):
    file, place = ELSEWHERE[command]
    assert place in (ROOT / file).read_text()
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


def test_what_it_points_to_is_there():
    assert (ROOT / "docs" / "dag.svg").read_text().count("<svg") == 1
    for path in re.findall(r"`((?:smt|params|workflow|benchmarks|docs)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path


def test_the_picture_of_the_dag_shows_every_rule_that_makes_something():
    picture = (ROOT / "docs" / "dag.svg").read_text()
    rules = {
        name
        for file in (ROOT / "workflow" / "rules").glob("*.smk")
        if file.name != "targets.smk"
        for name in re.findall(r"^(?:rule|use rule \w+ as) (\w+)", file.read_text(), re.M)
    }
    assert len(rules) >= 10
    assert rules <= set(re.findall(r">([\w ]+)</text>", picture))
