"""Unusual clusters, folders and environments: jobs run there, or one line explains why not."""

import os
import re
import time
from pathlib import Path

import pytest

from testbed.toy_workflow import Toy, message

RULE = "rule r:\n    output: 'r.txt'\n    resources: mem_mb=300, runtime=5\n    shell: '{}'\n"
TOUCH = RULE.format("touch {output}")


def error(output):
    """Return the one-line error of the executor."""
    errors = [line for line in output.splitlines() if line.startswith("Error: submitit: ")]
    (line,) = errors
    assert "Traceback" not in output
    return line


# --- jobs that can never start --------------------------------------------------------------------


def test_a_job_over_its_partition_limit_is_reported_with_the_reason(toy, cluster):
    cluster.run("scontrol", "update", "partition=grace", "MaxTime=1")
    try:
        toy.write(TOUCH.replace("runtime=5", "runtime=5, slurm_partition='grace'"))
        driver = toy.start()
        driver.await_that(lambda: "is pending: PartitionTimeLimit" in driver.output())
        (line,) = re.findall(r"^submitit: (job \d+ .*PartitionTimeLimit.*)$", driver.output(), re.M)
        assert "lower runtime, or choose another slurm_partition" in line
    finally:
        cluster.run("scontrol", "update", "partition=grace", "MaxTime=UNLIMITED")
    driver.succeed()


def test_jobs_over_an_account_limit_are_reported_in_one_line(toy, cluster):
    set_limit = ("sacctmgr", "-i", "modify", "account", "research", "set")
    cluster.run(*set_limit, "GrpJobs=0")
    try:
        toy.write("rule all:\n    input: expand('{i}.txt', i=range(3))\n"
                  + TOUCH.replace("r.txt", "{i}.txt"))  # fmt: skip
        driver = toy.start()
        driver.await_that(lambda: "AssocGrpJobsLimit" in driver.output())
        time.sleep(2)
        assert driver.output().count("AssocGrpJobsLimit") <= 3  # reported once
    finally:
        cluster.run(*set_limit, "GrpJobs=-1")
    driver.succeed()


# --- messages of failures ------------------------------------------------------------------------


def test_a_missing_output_is_reported(toy):
    toy.write(RULE.format("true").replace("'r.txt'", "'r.txt', 'further/s.txt'"))
    line = toy.fail("--latency-wait", "1")
    assert "its command succeeded, but did not make r.txt, further/s.txt; " in line


def test_the_error_of_a_group_has_its_job_id_log_and_cause(toy):
    toy.write(
        "rule all:\n    input: 'a.txt', 'b.txt'\n"
        "rule a:\n    output: 'a.txt'\n    group: 'pair'\n    resources: mem_mb=300, runtime=5\n"
        "    shell: 'touch {output}'\n"
        "rule b:\n    input: 'a.txt'\n    output: 'b.txt'\n    group: 'pair'\n"
        "    resources: mem_mb=300, runtime=5\n    shell: 'echo wrong recipe; exit 3'\n"
    )
    output = toy.start("all", "--show-failed-logs").fail()
    (job,) = toy.jobs()
    (line,) = re.findall(r"^submitit: group pair: (.*)$", output, flags=re.M)
    assert line.startswith(f"job {job}: FAILED (exit 3); log ") and "wrong recipe" in line
    log = re.search(r"log (\S+):", line)[1]
    assert f"    log: {log} (check log file(s) for error details)" in output
    assert "Logfile " in output and output.count("wrong recipe") > 1  # the log is shown
    assert toy.final_states() == {job: "FAILED"}


def test_a_job_fails_if_its_setup_fails(toy):
    toy.write(TOUCH)
    line = toy.fail(setup="echo no such module >&2; exit 4")
    assert "FAILED" in line and "no such module" in line
    line = toy.fail(setup="echo loading; false")
    assert "submitit: setup failed: echo loading; false" in line
    assert not (toy.folder / "r.txt").exists()
    assert set(toy.final_states().values()) == {"FAILED"}


# --- folders and programs -------------------------------------------------------------------------


def test_a_directory_name_with_special_characters(cluster, tmp_path):
    with Toy(tmp_path / 'it\'s a "project" (1) & ü $HOME', cluster) as toy:
        toy.write(RULE.format("echo started; exit 3"))
        line = message(toy.start().fail())
        assert "FAILED (exit 3)" in line and "started" in line
        toy.write(TOUCH)
        toy.succeed()


@pytest.mark.parametrize("sign", ["%", "\\"])
def test_a_directory_name_that_slurm_expands_is_an_error(cluster, tmp_path, sign):
    with Toy(tmp_path / f"50{sign}j", cluster) as toy:
        toy.write(TOUCH)
        line = error(toy.start().fail())
        assert f"SLURM does not accept {sign!r} in the path of a log" in line
        assert "submitit-folder" in line
        toy.succeed(folder=tmp_path / "elsewhere")


def test_a_file_system_without_locks_is_an_error(toy, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, fcntl, os\n"
        "def flock(file, operation):\n"
        "    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))\n"
        "fcntl.flock = flock\n"
    )
    toy.environment["PYTHONPATH"] = str(tmp_path)
    toy.write(TOUCH)
    line = error(toy.start_process().fail())
    assert "the file system does not support locks (Function not implemented)" in line
    assert "submitit-folder" in line


def test_sbatch_is_required_and_srun_is_not(toy, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    for folder in toy.environment["PATH"].split(os.pathsep):
        for path in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if path.name != "srun" and not (programs / path.name).exists():
                (programs / path.name).symlink_to(path)
    toy.environment["PATH"] = str(programs)
    toy.write(TOUCH)
    toy.succeed()
    (programs / "sbatch").unlink()
    line = error(toy.start("-F").fail())
    assert "no sbatch on PATH" in line and "--submitit-cluster local" in line


def test_old_logs_are_removed(toy):
    toy.write(TOUCH)
    toy.succeed(keep_logs="all")
    (log,) = (toy.folder / ".snakemake" / "submitit").glob("*_log.out")
    old = time.time() - 31 * 86400
    os.utime(log, (old, old))
    toy.succeed("-F", keep_logs="all", keep_logs_days=32)
    assert log.exists()
    os.utime(log, (old, old))
    toy.succeed("-F", keep_logs="all")
    assert not log.exists()


# --- resources ------------------------------------------------------------------------------------


def test_resources_of_other_executors_reach_slurm(toy):
    toy.write(
        "rule all:\n    input: 'a.txt', 'b.txt'\n"
        "rule a:\n    output: 'a.txt'\n    resources: mem_mb=0, runtime=5, tasks=4, nodes=2\n"
        "    shell: 'scontrol show job $SLURM_JOB_ID > {output}'\n"
        "rule b:\n    output: 'b.txt'\n"
        "    resources: mem_mb=300, runtime=5, gpu=2, cpus_per_gpu=2, mpi='srun'\n"
        "    shell: 'scontrol show job $SLURM_JOB_ID > {output}'\n"
    )
    toy.succeed()
    first, second = ((toy.folder / name).read_text() for name in ("a.txt", "b.txt"))
    assert "NumNodes=2" in first and "NumTasks=4" in first and "mem=16000M" in first
    assert "gres/gpu=2" in second and "NumCPUs=4" in second


def test_own_resources_of_a_workflow_can_be_declared(toy):
    toy.write(TOUCH.replace("runtime=5", "runtime=5, time=7, clusters='ours', gpu=3"))
    output = error(toy.start().fail())
    assert "time of rule r (did you mean runtime?)" in output and "one cluster" in output
    assert "--submitit-own-resources" in output and toy.jobs() == {}
    toy.succeed(own_resources="time,clusters,gpu")


def test_an_incompatible_snakemake_is_an_error(toy, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import snakemake.persistence as module\ndel module.PersistenceBase._code\n"
    )
    toy.environment["PYTHONPATH"] = str(tmp_path)
    toy.write(TOUCH)
    line = error(toy.start_process().fail())
    assert re.search(r"snakemake 9\.\S+ has no Persistence\._code, which snakemake-executor-", line)
    assert toy.jobs() == {}
