"""Provenance of a run: its code, its attempts and their GPU time."""

import hashlib
import subprocess

import pytest

from smt.runs import provenance
from smt.runs.atomic import read_json
from smt.runs.heartbeat import Heartbeat
from smt.runs.record import PROVENANCE, Attempt

CPU = {"world_size": 4, "threads": 1, "device": "cpu"}
GPU = {"world_size": 4, "threads": 1, "device": "cuda"}
FACTS = {
    "experiment": "tiny", "seed": 0, "scale": "demo", "fingerprint": "ab" * 32, "params": {},
    "names": dict.fromkeys(("task", "model", "recipe", "dataset", "group"), "any"), "data": {},
    "parent": None, "hardware": {"host": "n1", "processor": "a CPU", "gpus": []},
    "environment": CPU, "source": {},
}  # fmt: skip


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git repository with one commit, which is where commands are run."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "code.py").write_text("one = 1\n")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    return folder


def attempt(work_dir, **values):
    provenance.record_attempt(work_dir, FACTS, {"environment": CPU, "changes": [], **values})
    return read_json(work_dir / PROVENANCE)


def test_a_clean_checkout(checkout, tmp_path):
    state = provenance.git_state(tmp_path)
    assert state.commit is not None and len(state.commit) == 40
    assert (state.dirty, state.diff_sha256, state.untracked) == (False, None, None)


def test_the_diff_of_each_attempt_is_stored(checkout, tmp_path):
    work_dir = tmp_path / "work"
    for text in ("one = 11\n", "one = 111\n"):
        (checkout / "code.py").write_text(text)
        contents = attempt(work_dir)
    digests = [entry["diff_sha256"] for entry in contents["attempts"]]
    assert contents["git"]["diff_sha256"] == digests[0] != digests[1]
    for digest, line in zip(digests, ("+one = 11\n", "+one = 111\n"), strict=True):
        content = provenance.diff_file(work_dir, digest).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest and line.encode() in content


def test_untracked_files_are_listed(checkout, tmp_path):
    for number in range(provenance.UNTRACKED + 5):
        (checkout / f"new{number:03}.py").touch()
    state = provenance.git_state(tmp_path)
    assert state.dirty and state.untracked is not None
    assert state.untracked.count == provenance.UNTRACKED + 5
    assert state.untracked.first[:2] == ["new000.py", "new001.py"]
    assert len(state.untracked.first) == provenance.UNTRACKED


def test_without_git_all_fields_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert set(provenance.git_state(tmp_path).as_json().values()) == {None}


def test_an_attempt_without_an_end_gets_its_last_heartbeat(tmp_path):
    attempt(tmp_path)
    heartbeat = Heartbeat(tmp_path)
    heartbeat.write(7)
    heartbeat.close()
    last_heartbeat = float((tmp_path / "pulse").read_text().split()[1])
    first, second = attempt(tmp_path, resumed_at_step=5)["attempts"]
    assert first["ended"] == max(last_heartbeat, first["started"]) and "ended" not in second
    record = provenance.finish(tmp_path, second["started"] + 10)
    assert read_json(tmp_path / PROVENANCE) == record.as_json()
    assert record.attempts[1].ended == second["started"] + 10


def test_a_requeue_records_its_count(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    attempt(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    first, second = attempt(tmp_path)["attempts"]
    assert (first["slurm_job_id"], first["slurm_restart"]) == ("4711", None)
    assert (second["slurm_job_id"], second["slurm_restart"]) == ("4711", "1")
    assert second["slurm_nodes"] == "n[1-2]"


def test_gpu_seconds_are_summed_over_gpus_and_attempts():
    attempts = [
        Attempt(started=100.0, ended=160.0, environment=GPU),
        Attempt(started=500.0, ended=510.5, environment={**GPU, "world_size": 2}),
        Attempt(started=600.0, ended=900.0, environment=CPU),
    ]
    assert provenance.gpu_seconds(attempts) == 4 * 60 + 2 * 10.5
