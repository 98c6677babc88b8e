"""The SLURM cluster that other tests run on."""

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from testbed.fixtures import require_slurm
from testbed.slurm import (
    ACCOUNT,
    NODES,
    Cluster,
    ClusterError,
    Settings,
    configuration,
    programs,
)
from testbed.waiting import wait_for

TESTS = Path(__file__).parents[1]


def submit(cluster, folder, command, *options):
    """Submit a shell command; return the job's id and the file of its output."""
    output = folder / f"{time.monotonic_ns()}.out"
    job = cluster.run(
        "sbatch", "--parsable", f"--output={output}", f"--chdir={folder}", *options,
        f"--wrap={command}",
    ).stdout.strip()  # fmt: skip
    return job, output


def job_fields(cluster, job):
    """Return the fields of `scontrol show job`."""
    output = cluster.run("scontrol", "show", "job", job).stdout
    return dict(re.findall(r"(\S+?)=(\S*)", output))


def await_state(cluster, job, *states):
    def fields():
        return job_fields(cluster, job)

    return wait_for(
        lambda: current if (current := fields())["JobState"] in states else None,
        lambda: f"job {job} is {fields()['JobState']}, not {states}", every=0.1,
    )  # fmt: skip


def await_text(path, text):
    wait_for(lambda: path.exists() and text in path.read_text(), lambda: f"no {text!r} in {path}")


def whole_cluster():
    """Return options that request all GPUs of both nodes, so that another such job preempts."""
    return ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4", "--requeue"]


@pytest.fixture(autouse=True)
def empty(request):
    """Cancel all jobs after each test."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").cancel_all()


def test_both_nodes_are_idle(cluster):
    assert cluster.node_states() == dict.fromkeys(NODES, "idle")
    assert cluster.is_running()


def test_a_job_sees_the_gpus_that_it_requested(cluster, tmp_path):
    job, output = submit(cluster, tmp_path, "echo gpus=$CUDA_VISIBLE_DEVICES", "--gpus-per-node=2")
    await_state(cluster, job, "COMPLETED")
    await_text(output, "gpus=0,1")


def test_a_job_without_an_environment_finds_the_cluster(cluster, tmp_path):
    job, output = submit(cluster, tmp_path, "scontrol ping; echo done", "--export=NONE")
    await_state(cluster, job, "COMPLETED")
    await_text(output, "is UP\ndone")


@pytest.mark.parametrize("partition", ["gpu", "grace"])
def test_a_preempted_job_is_requeued_and_runs_again(cluster, tmp_path, partition):
    command = 'echo run ${SLURM_RESTART_COUNT:-0}; [ -n "$SLURM_RESTART_COUNT" ] || sleep 600'
    job, output = submit(
        cluster,
        tmp_path,
        command,
        f"--partition={partition}",
        "--open-mode=append",
        *whole_cluster(),
    )
    await_text(output, "run 0")
    other, _ = submit(cluster, tmp_path, "true", "--partition=high", *whole_cluster())
    await_state(cluster, other, "COMPLETED")
    await_state(cluster, job, "COMPLETED")
    await_text(output, "run 1")
    assert job_fields(cluster, job)["Restarts"] == "1"


def test_a_preempted_job_of_the_partition_cancel_is_cancelled(cluster, tmp_path):
    job, output = submit(
        cluster, tmp_path, "echo run; sleep 600", "--partition=cancel", *whole_cluster()
    )
    await_text(output, "run")
    other, _ = submit(cluster, tmp_path, "true", "--partition=high", *whole_cluster())
    await_state(cluster, other, "COMPLETED")
    fields = await_state(cluster, job, "PREEMPTED")
    assert (fields["Reason"], fields["Restarts"]) == ("None", "0")


def test_preemption_with_grace_time_sends_the_requested_signal(cluster, tmp_path):
    command = "trap 'echo signalled; exit 0' USR2; echo run; while :; do sleep 0.1; done"
    _, output = submit(
        cluster, tmp_path, command, "--partition=grace", "--signal=B:USR2@60", *whole_cluster()
    )
    await_text(output, "run")
    submit(cluster, tmp_path, "true", "--partition=high", *whole_cluster())
    await_text(output, "signalled")


def test_a_job_over_its_memory_is_killed(cluster, tmp_path):
    command = f"{sys.executable} -c 'import time; data = bytes([1]) * 2**28; time.sleep(600)'"
    job, output = submit(cluster, tmp_path, command, "--mem=100M")
    fields = await_state(cluster, job, "FAILED")
    assert (fields["Reason"], fields["ExitCode"]) == ("JobLaunchFailure", "0:9")
    await_text(output, "Exceeded job memory limit")


def test_accounting_answers(cluster, tmp_path):
    job, _ = submit(cluster, tmp_path, "exit 3")
    await_state(cluster, job, "FAILED")

    def sacct():
        fields = ("-o", "account,state,exitcode")
        return cluster.run("sacct", "-X", "-n", "-P", "-j", job, *fields).stdout.strip()

    wait_for(lambda: sacct() == f"{ACCOUNT}|FAILED|3:0", sacct, every=0.2)


@pytest.mark.parametrize(
    ("option", "message"),
    [("--account=nobody", "Invalid account"), ("--partition=nowhere", "Invalid partition")],
)
def test_an_unknown_account_or_partition_is_rejected_by_sbatch(cluster, option, message):
    with pytest.raises(ClusterError, match=message):
        cluster.run("sbatch", option, "--wrap=true")


def test_the_job_of_a_failed_node_is_requeued(cluster, tmp_path):
    command = 'echo run ${SLURM_RESTART_COUNT:-0} $$; [ -n "$SLURM_RESTART_COUNT" ] || sleep 600'
    job, output = submit(cluster, tmp_path, command, "--requeue", "--open-mode=append")
    await_text(output, "run 0")
    first = int(output.read_text().split()[2])
    node = job_fields(cluster, job)["BatchHost"]
    cluster.node_down(node)
    try:
        assert not psutil.pid_exists(first) or psutil.Process(first).status() == "zombie"
        await_state(cluster, job, "COMPLETED")
        assert cluster.node_states()[node] == "down"
    finally:
        cluster.node_up(node)
    assert "run 1" in output.read_text()
    assert cluster.node_states() == dict.fromkeys(NODES, "idle")


def test_jobs_survive_a_restart_of_the_controller(cluster, tmp_path):
    job, output = submit(
        cluster, tmp_path, f"echo run; until [ -e {tmp_path}/go ]; do sleep 0.1; done"
    )
    await_text(output, "run")
    cluster.controller_down()
    try:
        assert "DOWN" in cluster.run("scontrol", "ping", check=False).stdout
    finally:
        cluster.controller_up()
    assert job_fields(cluster, job)["JobState"] == "RUNNING"
    (tmp_path / "go").touch()
    await_state(cluster, job, "COMPLETED")


@pytest.fixture
def second(cluster, tmp_path_factory):
    """Another cluster, without accounting since that starts faster."""
    folder = tmp_path_factory.mktemp("second")
    second = Cluster(folder, Settings(accounting=False), tied=True)
    second.start()
    yield second
    second.stop()


def processes_in(folder):
    """Return running processes with `folder` in their arguments, environment or open files."""
    processes = []
    for process in psutil.process_iter(["pid", "cmdline", "environ", "status"]):
        texts = [*(process.info["cmdline"] or []), *(process.info["environ"] or {}).values()]
        with suppress(psutil.Error):
            texts += [file.path for file in process.open_files()]
        is_ignored = process.info["pid"] == os.getpid() or process.info["status"] == "zombie"
        if not is_ignored and any(str(folder) in text for text in texts):
            processes.append(process)
    return processes


def test_stop_kills_all_processes_even_if_they_ignore_signals(second, tmp_path):
    _, output = submit(second, tmp_path, "trap '' TERM INT HUP; echo run; setsid sleep 600")
    await_text(output, "run")
    assert len(processes_in(second.folder.path)) > 4
    second.stop()
    assert processes_in(second.folder.path) == []
    assert second.pids() == {}
    second.stop()  # again, with nothing to do


def test_two_clusters_are_independent(cluster, second, tmp_path):
    _, output = submit(second, tmp_path, "echo run; sleep 600")
    await_text(output, "run")
    assert cluster.run("squeue", "-h").stdout == ""
    assert second.run("sacct", check=False).returncode != 0
    second.stop()
    assert cluster.is_running()


def test_another_process_can_stop_the_cluster(second):
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [
        sys.executable,
        "-m",
        "testbed.slurm",
        "stop",
        "--folder",
        str(second.folder.path),
    ]
    subprocess.run(command, check=True, env=environment)
    assert processes_in(second.folder.path) == []


def test_a_tied_cluster_ends_with_its_process_even_after_sigkill(cluster, tmp_path):
    program = (
        "import sys, time, pathlib; from testbed.slurm import Cluster, Settings\n"
        "Cluster(pathlib.Path(sys.argv[1]), Settings(accounting=False), tied=True).start()\n"
        "print('started', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "tied")],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert owner.stdout.readline() == "started\n"
    assert len(Cluster(tmp_path / "tied").pids()) == 4
    owner.kill()
    owner.wait()
    wait_for(lambda: not processes_in(tmp_path / "tied"))


def test_a_reused_process_id_is_not_killed(second):
    """The recorded process had another start time, as after a reboot."""
    other = subprocess.Popen(["sleep", "600"])
    record = second.folder.processes
    original = record.read_text()
    record.write_text(f'{{"slurmctld": [{other.pid}, 1.0]}}')
    try:
        Cluster(second.folder.path).stop()
        assert other.poll() is None
    finally:
        record.write_text(original)
        other.kill()
        other.wait()


def test_a_daemon_that_does_not_start_is_a_one_line_error(tmp_path, monkeypatch):
    monkeypatch.setattr(configuration, "NAME", "a name with spaces = nonsense")
    cluster = Cluster(tmp_path / "broken", Settings(accounting=False))
    with pytest.raises(ClusterError) as error:
        cluster.start()
    assert "\n" not in str(error.value)
    assert re.match(r"(slurmctld|n1|n2): ended; .*\.out ends with: .", str(error.value))
    assert processes_in(cluster.folder.path) == []


def test_without_slurm_its_tests_are_skipped_with_the_reason(tmp_path):
    (tmp_path / "hide.py").write_text(
        "import testbed.slurm.programs as programs; programs.SEARCH_PATH = '/nowhere'"
    )
    variables = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTEST_", "CI", "SMT_"))
    }
    path = f"{tmp_path}{os.pathsep}{TESTS}"
    name = "tests/cluster/test_slurm.py::test_both_nodes_are_idle"
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "hide", "--no-fold-skipped", name],
        cwd=TESTS.parent, env={**variables, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert "1 skipped" in process.stdout.splitlines()[-1]
    assert name in process.stdout.splitlines()[-2]
    for part in ("SLURM is not installed: munged, sbatch", "apt-get install munge slurm-client"):
        assert part in process.stdout


def test_without_slurm_its_tests_fail_in_ci(monkeypatch):
    monkeypatch.setattr(programs, "SEARCH_PATH", "/nowhere")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="SLURM is not installed: munged, sbatch"):
        require_slurm()


def test_a_folder_with_other_files_is_not_emptied(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ClusterError, match="neither empty nor a cluster's"):
        Cluster(tmp_path).start()
    assert (tmp_path / "thesis.tex").exists()
