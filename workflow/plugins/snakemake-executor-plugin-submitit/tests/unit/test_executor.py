"""The executor plugin: documents, resources, settings, attempts and records."""

import dataclasses
import re
import shlex
import sys
from pathlib import Path

import pytest

from snakemake_executor_plugin_submitit import ExecutorSettings, resources, shared_folder
from snakemake_executor_plugin_submitit.attempts import (
    BLOCKED,
    DONE,
    LOST,
    RESUME_REQUESTED,
    SIGNALLED,
    TERMINATED,
    Attempt,
    Attempts,
    requeue_refusal,
    stalls,
)
from snakemake_executor_plugin_submitit.backends import is_transient
from snakemake_executor_plugin_submitit.job_step import JobStep
from snakemake_executor_plugin_submitit.registry import Record, Registry

PROJECT = Path(__file__).parents[2]


# --- documentation --------------------------------------------------------------------------------


def table(heading):
    text = (PROJECT / "docs" / "further.md").read_text()
    section = text.split(f"# {heading}\n")[1].split("\n# ")[0]
    return re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", section, flags=re.M)


def test_the_documents_list_every_setting_with_its_default():
    documented = {name.strip("`"): default.strip("`") for name, default in table("Settings")}
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(ExecutorSettings)}
    assert set(documented) == set(fields)
    for name, field in fields.items():
        if field.default is not None:
            shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
            assert documented[name] == str(shown), name


def test_the_documents_list_every_resource():
    names = " ".join(name for name, _ in table("Resources"))
    assert set(re.findall(r"`(\w+)`", names)) | {"disk_mb"} == set(resources.RESOURCES)


# --- resources ------------------------------------------------------------------------------------


def test_resources_become_a_request_for_sbatch():
    request = resources.request(
        {"runtime": 90, "mem_mb": 4000, "nodes": 2, "gpus": 8, "tasks_per_node": 4,
         "slurm_partition": "gpu", "slurm_account": "", "slurm_extra": "--exclude=n7 -x 'a b'"},
        threads=3, default_minutes=60,
    )  # fmt: skip
    assert (request.minutes, request.memory, request.nodes, request.tasks_per_node) == (
        90,
        "4000M",
        2,
        4,
    )
    assert request.gpus_per_node == "4" and request.cpus_per_task == 3
    assert request.partition == "gpu" and request.account is None
    assert request.extra == ("--exclude=n7", "-x", "a b")


def test_a_rule_without_resources_has_the_defaults():
    request = resources.request({}, threads=1, default_minutes=45)
    assert request == resources.Request(minutes=45, nodes=1, tasks_per_node=1, cpus_per_task=1)


def test_memory_per_cpu_replaces_memory_per_node():
    request = resources.request({"mem_mb": 1000, "mem_mb_per_cpu": 500}, 1, 60)
    assert (request.memory, request.memory_per_cpu) == (None, "500M")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpus": 3, "nodes": 2}, "3 GPUs cannot be divided evenly among 2 nodes"),
        ({"nodes": 0}, "resource nodes: 0 is too small"),
        ({"runtime": "soon"}, "resource runtime: 'soon' is not a whole number"),
        ({"tasks": 3, "nodes": 2}, "3 tasks cannot be divided evenly among 2 nodes"),
        ({"cpus_per_gpu": 2}, "resource cpus_per_gpu: the rule requests no gpus"),
        (
            {"gpus": 1, "tasks": 2, "cpus_per_gpu": 3},
            "3 CPUs cannot be divided evenly among 2 tasks",
        ),
        ({"gpus_per_node": "a100"}, "is not a number or TYPE:NUMBER"),
        ({"slurm_extra": "--output=x"}, "--output is set by the executor"),
        ({"slurm_extra": "-J x"}, "-J is set by the executor"),
        ({"slurm_extra": "--comment=x"}, "there is slurm_comment"),
        ({"slurm_extra": "'open"}, "No closing quotation"),
        ({"slurm_extra": "--clusters=other"}, "--clusters: jobs go to one cluster, that of SLURM_"),
        ({"slurm_extra": "-M other"}, "-M: jobs go to one cluster"),
    ],
)
def test_an_invalid_resource_is_an_error(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        resources.request(given, 1, 60)


def test_misspelt_resources_and_names_of_other_tools_are_unknown():
    names = ["mem_mb", "mem_gb", "walltime", "slurm_acount", "slurm_x", "tape_drives"]
    assert resources.unknown(names) == {
        "mem_gb": "did you mean mem_mb?",
        "walltime": "did you mean runtime?",
        "slurm_acount": "did you mean slurm_account?",
        "slurm_x": "did you mean slurm_extra?",
    }
    assert resources.unknown(["time", "partition"], declared={"time", "partition"}) == {}
    assert "one cluster" in resources.unknown(["clusters"])["clusters"]


@pytest.mark.parametrize(
    ("given", "expected"),
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
def test_resources_of_other_executors_mean_the_same(given, expected):
    request = dataclasses.asdict(resources.request(given, 1, 60))
    assert {name: request[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("message", "transient"),
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
def test_errors_of_an_unreachable_controller_are_transient(message, transient):
    assert is_transient(message) is transient


@pytest.mark.parametrize(
    ("setting", "value"),
    [("signal_delay", 1), ("max_stalls", 0), ("poll_interval", 0)],
)
def test_an_invalid_setting_is_an_error(setting, value):
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
        ([attempt(None, SIGNALLED), attempt(None, RESUME_REQUESTED)], None, 2),
        ([attempt(None, LOST), attempt(None, LOST)], None, 2),
        ([attempt("step 5", LOST), *[attempt("step 5", BLOCKED)] * 9], "step 5", 1),
    ],
)
def test_attempts_without_progress_are_counted(past, progress, count):
    assert stalls(past, progress) == count


def test_a_requeue_is_refused_past_the_limit_and_after_stalls():
    past = [attempt("step 1", SIGNALLED), attempt("step 2", SIGNALLED)]
    assert requeue_refusal(past, "step 3", max_requeues=2, max_stalls=2) is None
    assert "no requeue is left" in requeue_refusal(past, "step 3", max_requeues=1, max_stalls=2)
    assert requeue_refusal(past, "step 2", max_requeues=9, max_stalls=2) is None
    stalled = requeue_refusal(
        [*past, attempt("step 2", LOST)], "step 2", max_requeues=9, max_stalls=2
    )
    assert "2 attempts in a row ended without progress beyond 'step 2'" in stalled
    assert requeue_refusal([], None, max_requeues=0, max_stalls=1) is None


def test_attempts_are_read_back_without_an_incomplete_last_line(tmp_path):
    attempts = Attempts(tmp_path, "key")
    attempts.begin("7", "n1")
    attempts.progress_file.write_text("step 9\n")
    attempts.resume_file.touch()
    assert attempts.resume_requested() and not attempts.is_blocked()
    attempts.resume_file.write_text("blocked")
    assert attempts.resume_requested() and attempts.is_blocked()
    attempts.end("7", SIGNALLED)
    attempts.begin("7", "n2")
    assert not attempts.resume_requested() and not attempts.is_blocked()  # of the one before
    (log,) = tmp_path.glob("key.*.attempts")
    with log.open("a") as file:
        file.write('{"job_id": "7", "en')
    first, second = attempts.read()
    assert (first.node, first.progress, first.end) == ("n1", None, SIGNALLED)
    assert (second.node, second.progress, second.end) == ("n2", "step 9", LOST)
    assert shared_folder.remove(attempts.files()) == []
    assert attempts.read() == [] and list(tmp_path.iterdir()) == []


def test_an_attempt_that_is_superseded_ends_without_a_result(tmp_path):
    """As on a node that SLURM lost, and that comes back after the job was started elsewhere."""
    later = (
        "from pathlib import Path\n"
        "from snakemake_executor_plugin_submitit.attempts import Attempts\n"
        f"Attempts(Path({str(tmp_path)!r}), 'key').begin('unknown', 'n2')"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(later)}; exit 75"
    # In this process, whose signals and other children stay as they are.
    step = JobStep(command, tmp_path, "key", 120, 50, 2, True, resumable=True, in_process=True)
    with pytest.raises(SystemExit, match="1"):
        step()
    first, second = Attempts(tmp_path, "key").read()
    assert (first.end, second.end, second.node) == (LOST, LOST, "n2")


def test_each_host_appends_to_its_own_file_and_the_order_does_not_depend_on_clocks(
    tmp_path, monkeypatch
):
    for host, clock in [("n1", 200.0), ("n2", 100.0), ("n1", 300.0)]:
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        Attempts(tmp_path, "key").begin("7", host)
        Attempts(tmp_path, "key").end("7", SIGNALLED)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "key.n1.attempts", "key.n2.attempts",
    ]  # fmt: skip
    attempts = Attempts(tmp_path, "key").read()
    assert [(each.node, each.number, each.end) for each in attempts] == [
        ("n1", 1, SIGNALLED), ("n2", 2, SIGNALLED), ("n1", 3, SIGNALLED),
    ]  # fmt: skip


def test_an_end_of_another_job_is_ignored(tmp_path):
    attempts = Attempts(tmp_path, "key")
    attempts.begin("7", "n1")
    attempts.end("6", DONE)
    assert attempts.read()[0].end == LOST


def test_records_are_read_back_and_looked_up_by_output(tmp_path):
    outputs = {"a.txt": {"code": "1", "params": "5"}, "b.txt": {"code": "2", "params": "6"}}
    record = Record("k", "train-k", str(Path.cwd()), outputs, "r")
    Registry(tmp_path).write(record)
    Registry(tmp_path).write(Record("x", "train-x", "/elsewhere", outputs, "r"))  # a copy
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
