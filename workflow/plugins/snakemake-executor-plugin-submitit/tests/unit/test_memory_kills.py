"""Memory kills are counted in a job's control groups, of version 1 and 2."""

from pathlib import Path

import pytest

from snakemake_executor_plugin_submitit import memory_kills


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A function that gives this process a control group of a job, below a folder."""
    real_read = memory_kills._read

    def enter(kind, options, controllers, group):
        texts = {
            "/proc/self/mounts": f"proc /proc proc rw 0 0\nx {tmp_path} {kind} {options} 0 0\n",
            "/proc/self/cgroup": f"7:cpu:/\n4:{controllers}:{group}\n",
        }
        monkeypatch.setattr(
            memory_kills, "_read", lambda file: texts.get(str(file)) or real_read(file)
        )

    return enter


def write(file: Path, kills: int):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")


def test_version_1_counts_each_group_on_its_own(group, tmp_path):
    group("cgroup", "rw,memory", "memory", "/slurm/uid_0/job_7/step_batch/task_0")
    job = tmp_path / "slurm/uid_0/job_7"
    for step, kills in (("step_batch/task_0", 0), ("step_0/task_1", 2), ("step_0", 1)):
        write(job / step / "memory.oom_control", kills)
    write(job.with_name("job_77") / "memory.oom_control", 9)
    assert memory_kills.count() == 3


def test_version_2_counts_them_in_the_jobs_own_group(group, tmp_path):
    group("cgroup2", "rw", "", "/system.slice/slurmstepd.scope/job_7/step_batch/user/task_0")
    job = tmp_path / "system.slice/slurmstepd.scope/job_7"
    write(job / "memory.events", 2)
    write(job / "step_0" / "memory.events", 2)
    assert memory_kills.count() == 2


@pytest.mark.parametrize("path", ["/", "/user.slice/job_7"])
def test_without_a_jobs_group_there_are_none(group, path):
    group("cgroup", "rw,memory", "memory", path)
    assert memory_kills.count() == 0
