"""Jobs of an earlier run of Snakemake that ended before this one."""

import logging
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from snakemake_executor_plugin_submitit import ExecutorSettings, diagnosis, job_files
from snakemake_executor_plugin_submitit.attempts import Attempts
from snakemake_executor_plugin_submitit.backends import create_backend
from snakemake_executor_plugin_submitit.registry import Record, Registry
from snakemake_executor_plugin_submitit.tracked_job import Outcome, Phase
from snakemake_executor_plugin_submitit.tracking import Tracker
from testbed.lookup_cache import FakeLookupCache, write_on_another_host

RESULT = {"exit_code": 0, "message": None, "requeues": 0}


@pytest.fixture
def succeeded(tmp_path):
    """A tracker, a job that succeeded in an earlier run of Snakemake, and its output file."""
    output = tmp_path / "out.txt"
    new_record = Record("k", "rule-k", str(Path.cwd()), {str(output): {"code": "1"}}, "r")
    record = replace(new_record, job_id="7")
    registry = Registry(tmp_path / "jobs")
    registry.write(record)
    result = job_files.result_path(registry.folder, "7")
    result.write_bytes(pickle.dumps(("success", RESULT)))
    settings = ExecutorSettings(cluster="local")
    backend = create_backend(settings, registry.folder)
    tracker = Tracker(settings, registry.folder, registry, backend, logging.getLogger(), {"code"})
    step = SimpleNamespace(marks=[(str(tmp_path / "incomplete"), "{}")])
    job = tracker.track(new_record, step, request=None, outputs=[str(output)], rule_logs=[])
    tracker.poll()
    return tracker, job, output


def test_a_job_that_has_succeeded_is_done(succeeded):
    tracker, job, output = succeeded
    output.touch()
    assert tracker.advance(job) == Outcome()


def test_a_job_whose_output_is_missing_is_run_again(succeeded):
    tracker, job, _ = succeeded
    assert tracker.advance(job) is None
    assert job.phase is Phase.AWAIT_CONFLICTS and not job.reattached


@pytest.fixture
def reported(succeeded, tmp_path):
    """The same once its success is reported, and the marker that its output is incomplete."""
    tracker, job, output = succeeded
    marker = tmp_path / "incomplete"
    output.touch()
    marker.touch()
    tracker.advance(job)
    return tracker, job, marker


def is_on_record(tracker):
    return (tracker._registry.folder / "k.json").exists()


def test_a_job_stays_on_record_until_snakemake_has_recorded_its_outputs(reported):
    """Without its record, a Snakemake that starts after a kill in between runs it again."""
    tracker, _, marker = reported
    tracker.poll()
    assert is_on_record(tracker)
    marker.unlink()
    tracker.poll()
    assert not is_on_record(tracker)


def test_no_job_stays_on_record_when_snakemake_ends(reported):
    """With --keep-incomplete, the marker of a job whose outputs Snakemake refuses stays."""
    tracker, _, _ = reported
    tracker.close()
    assert not is_on_record(tracker)


def test_a_job_whose_outputs_snakemake_refuses_is_run_again(reported):
    tracker, job, _ = reported
    retry = tracker.track(job.new_record, job.step, None, job.outputs, [])
    tracker.poll()
    assert not is_on_record(tracker)
    tracker._reattachment.match(retry)
    assert retry.phase is Phase.SUBMIT


# --- a file system that caches lookups ------------------------------------------------------------


def test_outputs_that_a_fake_lookup_cache_hides_are_visible_once_a_job_is_done(
    succeeded, tmp_path, monkeypatch
):
    tracker, job, output = succeeded
    deep = tmp_path / "deep" / "er" / "out.txt"
    job.outputs.append(str(deep))
    FakeLookupCache(tmp_path).install(monkeypatch)
    assert not output.exists() and not deep.exists() and not deep.parent.parent.exists()
    for path in (output, deep):
        write_on_another_host(path)
    assert tracker.advance(job) == Outcome()
    assert output.exists() and deep.exists()


def test_attempts_that_a_fake_lookup_cache_hides_are_read(tmp_path, monkeypatch):
    attempts = Attempts(tmp_path, "k")
    FakeLookupCache(tmp_path).install(monkeypatch)
    assert attempts.progress() is None and not attempts.resume_requested()
    write_on_another_host(attempts.progress_file, "step 7")
    write_on_another_host(attempts.resume_file)
    assert attempts.progress() == "step 7" and attempts.resume_requested()
    attempts.begin("1", "n1")
    assert not attempts.resume_requested()
    write_on_another_host(attempts.resume_file)
    attempts.begin("1", "n2")  # what the attempt before requested is over
    assert not attempts.resume_requested()


def test_a_log_that_a_fake_lookup_cache_hides_is_quoted(tmp_path, monkeypatch):
    log = tmp_path / "7_0_log.out"
    FakeLookupCache(tmp_path).install(monkeypatch)
    assert diagnosis.tail(log) == []
    write_on_another_host(log, "the cause\n")
    assert diagnosis.tail(log) == ["the cause"]


# --- a file system that fails ---------------------------------------------------------------------


def test_files_that_cannot_be_removed_end_nothing_and_are_reported_in_one_line(succeeded, caplog):
    """A folder in place of a file is what unlink refuses to anyone, as sshfs does with EPERM."""
    tracker, job, output = succeeded
    output.touch()
    folder = output.parent / "jobs"
    blocked = [job_files.step_path(folder, "7"), folder / "k.progress"]
    for path in blocked:
        path.mkdir()
    assert tracker.advance(job) == Outcome()
    tracker.poll()
    (line,) = [record.message for record in caplog.records]
    assert "not removed, and not needed any more" in line and "(and 1 others)" in line
    assert not (folder / "k.json").exists() and all(path.exists() for path in blocked)


def test_removing_the_files_of_a_job_twice_is_no_error(succeeded, caplog):
    _, job, output = succeeded
    registry = Registry(output.parent / "jobs")
    for _ in range(2):
        job_files.forget(registry, registry.folder, job.record, logging.getLogger())
    assert caplog.records == []


def test_a_result_that_cannot_be_read_is_read_later(succeeded):
    """/proc/self/mem at its start is an error of reading (EIO) that any user can have."""
    tracker, job, output = succeeded
    output.touch()
    path = job_files.result_path(output.parent / "jobs", "7")
    content = path.read_bytes()
    path.unlink()
    path.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error"):
        tracker.advance(job)
    path.unlink()
    path.write_bytes(content)
    assert tracker.advance(job) == Outcome()
