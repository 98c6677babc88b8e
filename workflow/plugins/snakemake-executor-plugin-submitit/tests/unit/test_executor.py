"""The executor plugin: what it documents, what it asks for, and what its parts decide."""

import dataclasses
import re
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
from snakemake_executor_plugin_submitit.backends import is_transient
from snakemake_executor_plugin_submitit.registry import Record, Registry

PROJECT = Path(__file__).parents[2]


# --- documentation --------------------------------------------------------------------------------


def table(heading):
    text = (PROJECT / "docs" / "further.md").read_text()
    section = text.split(f"# {heading}\n")[1].split("\n# ")[0]
    return re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", section, flags=re.M)


def test_the_documents_list_every_setting_with_its_default():
    listed = {name.strip("`"): default.strip("`") for name, default in table("Settings")}
    fields = {each.name.replace("_", "-"): each for each in dataclasses.fields(ExecutorSettings)}
    assert set(listed) == set(fields)
    for name, field in fields.items():
        if field.default is not None:
            shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
            assert listed[name] == str(shown), name


def test_the_documents_list_every_resource():
    named = " ".join(name for name, _ in table("Resources"))
    assert set(re.findall(r"`(\w+)`", named)) | {"disk_mb"} == set(resources.RESOURCES)


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
        ({"tasks": 3, "nodes": 2}, "3 tasks do not divide by 2 nodes"),
        ({"cpus_per_gpu": 2}, "resource cpus_per_gpu: there are no gpus"),
        ({"gpus": 1, "tasks": 2, "cpus_per_gpu": 3}, "3 CPUs do not divide by 2 tasks"),
        ({"gpus_per_node": "a100"}, "is not a number or TYPE:NUMBER"),
        ({"slurm_extra": "--output=x"}, "--output is set by the executor"),
        ({"slurm_extra": "-J x"}, "-J is set by the executor"),
        ({"slurm_extra": "--comment=x"}, "there is slurm_comment"),
        ({"slurm_extra": "'open"}, "No closing quotation"),
        ({"slurm_extra": "--clusters=other"}, "--clusters: jobs go to one cluster, that of SLURM_"),
        ({"slurm_extra": "-M other"}, "-M: jobs go to one cluster"),
    ],
)
def test_a_resource_that_cannot_be_met_is_named(given, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        resources.request(given, 1, 60)


def test_misspelt_resources_and_names_of_other_tools_are_found():
    names = ["mem_mb", "mem_gb", "walltime", "slurm_acount", "slurm_x", "tape_drives"]
    assert resources.without_effect(names) == {
        "mem_gb": "meant: mem_mb?",
        "walltime": "meant: runtime?",
        "slurm_acount": "meant: slurm_account?",
        "slurm_x": "meant: slurm_extra?",
    }
    assert resources.without_effect(["time", "partition"], known={"time", "partition"}) == {}
    assert "one cluster" in resources.without_effect(["clusters"])["clusters"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"tasks": 4, "nodes": 2}, {"tasks_per_node": 2, "nodes": 2}),
        ({"gpu": 2, "gpu_model": "a100"}, {"gpus_per_node": "a100:2"}),
        ({"gpus": "a100:4", "nodes": 2}, {"gpus_per_node": "a100:2"}),
        ({"gpus": "0"}, {"gpus_per_node": None}),
        ({"gpus": 2, "tasks_per_gpu": 2}, {"tasks_per_node": 4}),
        ({"gpus": 4, "cpus_per_gpu": 6}, {"cpus_per_task": 24}),
        ({"gpus": 4, "tasks_per_gpu": 1, "cpus_per_gpu": 6}, {"cpus_per_task": 6}),
        ({"mem_mb": 0}, {"memory": "0"}),
        ({"mpi": "srun"}, {}),
    ],
)
def test_what_other_executors_know_means_the_same_here(asked, expected):
    found = dataclasses.asdict(resources.request(asked, 1, 60))
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("said", "transient"),
    [
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", False),
        ("Batch job submission failed: Requested node configuration is not available", False),
        ("sbatch: unrecognized option '--colour'", False),
        ("sbatch: error: Unable to open file /somewhere/script.sh", False),
        ("error: Illegal value (abc) for --nice, must be between +/-10000", False),
        ("sbatch: error: Batch script is empty!", False),
        ("sbatch: error: what no list of messages has", False),
        ("Batch job submission failed: Socket timed out on send/recv operation", True),
        ("sbatch: error: Unable to contact slurm controller (connect failure)", True),
        ("error: AssocMaxSubmitJobLimit\nJob violates accounting/QOS policy", True),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("error: Munge encode failed: Failed to access /run/munge/munge.socket.2", True),
    ],
)
def test_a_controller_that_is_away_is_told_from_an_answer(said, transient):
    assert is_transient(said) is transient


@pytest.mark.parametrize(
    ("setting", "value"),
    [("signal_delay", 1), ("max_stalls", 0), ("poll_interval", 0)],
)
def test_a_setting_that_is_not_valid_is_named(setting, value):
    with pytest.raises(ValueError, match=f"submitit-{setting.replace('_', '-')}.*valid: "):
        ExecutorSettings(**{setting: value})


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
        ([attempt(None, SIGNALLED), attempt(None, ASKED)], None, 2),
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
    made = {"a.txt": {"code": "1", "params": "5"}, "b.txt": {"code": "2", "params": "6"}}
    record = Record("k", "train-k", str(Path.cwd()), made, "r")
    Registry(tmp_path).write(record)
    Registry(tmp_path).write(Record("x", "train-x", "/elsewhere", made, "r"))  # by a copy
    (tmp_path / "broken.json").write_text("{")
    registry = Registry(tmp_path)
    assert registry.overlapping(["b.txt", "c.txt"]) == [record]
    assert registry.overlapping(["c.txt"]) == []
    assert record.covers({"b.txt": {}}) and not record.covers({"b.txt": {}, "c.txt": {}})
    other = {"b.txt": {"code": "3", "params": "6"}}
    assert record.changes(other, {"code", "params"}) == ["code"]
    assert record.changes(other, {"params"}) == []
    registry.remove(record)
    assert Registry(tmp_path).all() == []
