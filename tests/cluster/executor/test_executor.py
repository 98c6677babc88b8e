"""The executor plugin: what it asks for, where it runs jobs, and what its parts decide."""

import ast
import dataclasses
import re
import sys
from pathlib import Path

import pytest
from snakemake_executor_plugin_submitit import ExecutorSettings, resources
from snakemake_executor_plugin_submitit.attempts import (
    ASKED,
    DONE,
    LOST,
    SIGNALLED,
    TERMINATED,
    Attempt,
    Attempts,
    refusal,
    stalls,
)
from snakemake_executor_plugin_submitit.backends import is_refusal
from snakemake_executor_plugin_submitit.registry import Record, Registry

from tests.helpers.toy_workflow import Toy, message, training_rule

PLUGIN = Path(resources.__file__).parent
SIMPLE = "rule r:\n    output: 'r.txt'\n    resources: mem_mb=300, runtime=5\n    shell: {!r}\n"


# --- documentation --------------------------------------------------------------------------------


def table(heading):
    text = (PLUGIN / "README.md").read_text()
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", section, flags=re.M)


def test_the_readme_lists_every_setting_with_its_default():
    listed = {name.strip("`"): default.strip("`") for name, default in table("Settings")}
    fields = {each.name.replace("_", "-"): each for each in dataclasses.fields(ExecutorSettings)}
    assert set(listed) == set(fields)
    for name, field in fields.items():
        if field.default is not None:
            shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
            assert listed[name] == str(shown), name


def test_the_readme_lists_every_resource():
    named = " ".join(name for name, _ in table("Resources"))
    assert set(re.findall(r"`(\w+)`", named)) | {"disk_mb"} == set(resources.RESOURCES)


def test_the_plugin_imports_nothing_of_this_project():
    for path in PLUGIN.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name and name.split(".")[0] == "smt"], path


def test_a_job_starts_without_collecting_garbage_and_runs_with_it(tmp_path):
    """Importing Snakemake is most of a short job; a rule's own Python is like any other."""
    toy = Toy(tmp_path, None)
    toy.write(
        "rule r:\n    output: 'r.txt'\n    resources: mem_mb=300, runtime=5\n    run:\n"
        "        import gc\n"
        "        with open(output[0], 'w') as file:\n"
        "            print(gc.isenabled(), gc.get_freeze_count() > 10000, file=file)\n"
    )
    toy.succeed(cluster="local")
    assert (tmp_path / "r.txt").read_text() == "True True\n"


# --- resources ------------------------------------------------------------------------------------


def test_resources_become_what_sbatch_is_asked_for():
    asked = resources.request(
        {"runtime": 90, "mem_mb": 4000, "nodes": 2, "gpus": 8, "tasks_per_node": 4,
         "slurm_partition": "gpu", "slurm_account": "", "slurm_extra": "--exclude=n7 -x 'a b'"},
        threads=3, default_minutes=60,
    )  # fmt: skip
    assert (asked.minutes, asked.memory, asked.nodes, asked.tasks_per_node) == (90, "4000M", 2, 4)
    assert asked.gpus_per_node == "4" and asked.cpus_per_task == 3
    assert asked.partition == "gpu" and asked.account is None
    assert asked.extra == ("--exclude=n7", "-x", "a b")


def test_defaults_where_a_rule_says_nothing():
    asked = resources.request({}, threads=1, default_minutes=45)
    assert asked == resources.Request(minutes=45, nodes=1, tasks_per_node=1, cpus_per_task=1)


def test_memory_of_each_cpu_takes_the_place_of_that_of_a_node():
    asked = resources.request({"mem_mb": 1000, "mem_mb_per_cpu": 500}, 1, 60)
    assert (asked.memory, asked.memory_per_cpu) == (None, "500M")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gpus": 3, "nodes": 2}, "3 GPUs do not divide by 2 nodes"),
        ({"nodes": 0}, "resource nodes: 0 is too small"),
        ({"runtime": "soon"}, "resource runtime: 'soon' is not a whole number"),
        ({"gpus_per_node": "a100"}, "is not a number or TYPE:NUMBER"),
        ({"slurm_extra": "--output=x"}, "--output is set by the executor"),
        ({"slurm_extra": "-J x"}, "-J is set by the executor"),
        ({"slurm_extra": "--comment=x"}, "there is slurm_comment"),
        ({"slurm_extra": "'open"}, "No closing quotation"),
    ],
)
def test_a_resource_that_cannot_be_met_is_named(given, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        resources.request(given, 1, 60)


def test_misspelt_resources_and_names_of_other_tools_are_found():
    names = ["mem_mb", "mem_gb", "gpu", "walltime", "slurm_acount", "slurm_x", "tape_drives"]
    assert resources.misspelt(names) == {
        "mem_gb": "mem_mb",
        "gpu": "gpus",
        "walltime": "runtime",
        "slurm_acount": "slurm_account",
        "slurm_x": "slurm_extra",
    }
    assert "gpu" not in resources.misspelt(names, known={"gpu"})


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", True),
        ("Batch job submission failed: Requested node configuration is not available", True),
        ("sbatch: unrecognized option '--colour'", True),
        ("Batch job submission failed: Socket timed out on send/recv operation", False),
        ("sbatch: error: Unable to contact slurm controller (connect failure)", False),
        ("error: AssocMaxSubmitJobLimit\nJob violates accounting/QOS policy", False),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", False),
    ],
)
def test_what_sbatch_says_is_told_apart(said, refused):
    assert is_refusal(said) is refused


# --- attempts -------------------------------------------------------------------------------------


def attempt(progress, end):
    return Attempt("1", "n1", 0.0, progress, end)


@pytest.mark.parametrize(
    ("past", "progress", "count"),
    [
        ([], None, 0),
        ([attempt(None, LOST)], "step 5", 0),
        ([attempt("step 5", LOST)], "step 5", 1),
        ([attempt("step 5", SIGNALLED), attempt("step 5", LOST)], "step 5", 2),
        ([attempt("step 5", LOST), attempt("step 5", TERMINATED)], "step 5", 1),
        ([attempt("step 5", LOST), attempt("step 6", LOST)], "step 6", 1),
        ([attempt(None, SIGNALLED), attempt(None, ASKED)], None, 0),
        ([attempt(None, LOST), attempt(None, LOST)], None, 2),
    ],
)
def test_attempts_without_progress_are_counted(past, progress, count):
    assert stalls(past, progress) == count


def test_another_attempt_is_refused_past_the_last_requeue_and_after_stalls():
    past = [attempt("step 1", SIGNALLED), attempt("step 2", SIGNALLED)]
    assert refusal(past, "step 3", max_requeues=2, max_stalls=2) is None
    assert "no requeue is left" in refusal(past, "step 3", max_requeues=1, max_stalls=2)
    assert refusal(past, "step 2", max_requeues=9, max_stalls=2) is None
    stalled = refusal([*past, attempt("step 2", LOST)], "step 2", max_requeues=9, max_stalls=2)
    assert "2 attempts in a row ended without progress beyond 'step 2'" in stalled
    assert refusal([], None, max_requeues=0, max_stalls=1) is None


def test_attempts_are_kept_in_a_file_and_a_torn_last_line_is_left_out(tmp_path):
    attempts = Attempts(tmp_path, "key")
    attempts.begin("7", "n1")
    attempts.progress_file.write_text("step 9\n")
    attempts.resume_file.touch()
    attempts.end("7", SIGNALLED)
    attempts.begin("7", "n2")
    assert not attempts.asked_to_resume()  # that was the attempt before
    with (tmp_path / "key.attempts").open("a") as file:
        file.write('{"job_id": "7", "en')
    first, second = attempts.read()
    assert (first.node, first.progress, first.end) == ("n1", None, SIGNALLED)
    assert (second.node, second.progress, second.end) == ("n2", "step 9", LOST)
    attempts.remove()
    assert attempts.read() == [] and list(tmp_path.iterdir()) == []


def test_an_end_belongs_to_the_attempt_of_its_job(tmp_path):
    attempts = Attempts(tmp_path, "key")
    attempts.begin("7", "n1")
    attempts.end("6", DONE)
    assert attempts.read()[0].end == LOST


def test_records_come_back_and_are_found_by_what_they_make(tmp_path):
    record = Record("k", "train-k", {"a.txt": "1", "b.txt": "2"})
    Registry(tmp_path).write(record)
    (tmp_path / "broken.json").write_text("{")
    registry = Registry(tmp_path)
    assert registry.overlapping(["b.txt", "c.txt"]) == [record]
    assert registry.overlapping(["c.txt"]) == []
    assert record.covers(Record("x", "x", {"b.txt": "2"}))
    assert not record.covers(Record("x", "x", {"b.txt": "3"}))
    assert not record.covers(Record("x", "x", {"b.txt": "2", "c.txt": "1"}))
    registry.remove(record)
    assert Registry(tmp_path).all() == []


# --- without SLURM --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["local", "debug"])
def test_jobs_run_without_slurm(tmp_path, place):
    toy = Toy(tmp_path / "toy", None)
    toy.write(
        "rule all:\n    input: expand('{i}.txt', i=range(3))\n"
        + SIMPLE.format("echo made > {output}").replace("'r.txt'", "'{i}.txt'")
    )
    toy.succeed(cluster=place)
    assert [(toy.folder / f"{i}.txt").read_text() for i in range(3)] == ["made\n"] * 3


@pytest.mark.parametrize("place", ["local", "debug"])
def test_a_failure_without_slurm_is_explained(tmp_path, place):
    toy = Toy(tmp_path / "toy", None)
    toy.write(SIMPLE.format("echo so it is; exit 3"))
    code, said = toy.run(cluster=place)
    assert code != 0
    assert "FAILED (exit " in message(said)


def test_a_local_job_is_taken_over(tmp_path):
    toy = Toy(tmp_path / "toy", None)
    toy.write(training_rule(steps=80))
    process = toy.start(cluster="local")
    toy.await_starts(1, process)
    process.kill()
    process.wait()
    said = toy.succeed(cluster="local")
    assert "taken over from an earlier start" in said
    assert len(toy.starts()) == 1


# --- several ranks --------------------------------------------------------------------------------

RANKS = f"""
rule r:
    output: "r.txt"
    resources: mem_mb=600, runtime=5, nodes=2, tasks_per_node=2, cpus_per_task=2, gpus_per_node=2
    shell:
        "echo once >> shell.txt; srun {sys.executable} -c '"
        "import os; print(*[os.environ.get(name) for name in "
        "(\\"SLURM_PROCID\\", \\"SLURM_NTASKS\\", \\"SLURMD_NODENAME\\", \\"SLURM_LOCALID\\", "
        "\\"SLURM_CPUS_PER_TASK\\", \\"MASTER_ADDR\\", \\"MASTER_PORT\\")])' > {{output}}"
"""


@pytest.mark.xdist_group("cluster")
def test_an_allocation_runs_the_command_once_and_srun_starts_all_ranks(tmp_path, cluster):
    toy = Toy(tmp_path / "toy", cluster)
    toy.write(RANKS)
    toy.succeed()
    assert (toy.folder / "shell.txt").read_text() == "once\n"
    lines = sorted(line.split() for line in (toy.folder / "r.txt").read_text().splitlines())
    assert [line[0] for line in lines] == ["0", "1", "2", "3"]
    assert [line[2] for line in lines] == ["n1", "n1", "n2", "n2"]
    assert [line[3] for line in lines] == ["0", "1", "0", "1"]
    assert {(line[1], line[4], line[5]) for line in lines} == {("4", "2", "127.0.0.1")}
    (port,) = {line[6] for line in lines}
    assert 1024 < int(port) < 65536
