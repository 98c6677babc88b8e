"""A workflow with every kind of rule: the results are those of Snakemake's local executor."""

import base64
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.fixtures import report_missing
from testbed.toy_workflow import Toy

SOURCE = Path(__file__).with_name("every_kind")
OPTIONS = (
    "--snakefile", "code/Snakefile", "--directory", "work", "--workflow-profile", "code/profile",
    "--configfile", "code/config.yaml", "--config", "extra=it's $HOME", "--nolock",
)  # fmt: skip

RETRIES = 1
"""Failed attempts at the rule `retried`."""
LOCAL = {"everything", "by_list", "by_directive", "handed_over", "by_template"}
GROUPED = [{"first", "second"}, {"piped", "counted"}, {"served", "asked"}]

REQUIRED_PROGRAMS = {"Rscript": "r-base-core", "rsync": "rsync"}
"""Programs that its rules run -> their Debian packages."""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("every_kind")]  # run once


class Run:
    """A complete run of the workflow in a folder of its own."""

    jobs: dict[str, str]
    """States of its SLURM jobs by job id."""

    def __init__(self, folder, environment, *executor):
        self.folder, self.work = folder, folder / "work"
        shutil.copytree(SOURCE, folder / "code")
        shutil.copytree(SOURCE / "templates", self.work / "templates")
        (folder / "cache").mkdir()
        # A quote makes Python write a string in double quotes, in which a shell expands names.
        self._environment = {
            **environment, "EVERY_KIND": "it's $HOME ü",
            "SNAKEMAKE_OUTPUT_CACHE": str(folder / "cache"),
        }  # fmt: skip
        self._executor = executor
        self.output = self.start("everything", "announce")

    def start(self, *targets):
        """Run Snakemake, which has to succeed; return its output."""
        process = subprocess.run(
            [sys.executable, "-m", "snakemake", *OPTIONS, *self._executor, *targets],
            cwd=self.folder, env=self._environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.returncode == 0, process.stdout
        return process.stdout

    def files(self):
        """Return kind, permissions and content of everything in the working directory."""
        files = {}
        for folder, folders, names in os.walk(self.work):
            if ".snakemake" in folders:
                folders.remove(".snakemake")
            for path in (Path(folder) / name for name in folders + names):
                state = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(state.st_mode) else None
                if path.suffix == ".tsv":  # a benchmark
                    content = [line.split(b"\t")[2:3] for line in content.splitlines()[:1]]
                name = str(path.relative_to(self.work))
                files[name] = (stat.filemode(state.st_mode), content)
        return files

    def records(self, kind):
        """Return Snakemake's records of a kind by the names of outputs."""
        folder = self.work / ".snakemake" / kind
        records = {}
        for path in filter(Path.is_file, folder.rglob("*")):
            name = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
            records[base64.urlsafe_b64decode(name).decode()] = json.loads(path.read_text())
        return records

    def finished(self):
        """Return the rules of all jobs of the first run, sorted."""
        return sorted(re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)$", self.output, flags=re.M))

    def metadata(self):
        """Return Snakemake's metadata of outputs, without times.

        Checksums of removed temporary inputs are left out: within a group there are none.
        """
        times = ("starttime", "endtime", "job_hash")
        metadata = {}
        for output, record in self.records("metadata").items():
            metadata[output] = {name: value for name, value in record.items() if name not in times}
            metadata[output]["input_checksums"] = {
                path: checksum for path, checksum in record["input_checksums"].items()
                if (self.work / path).exists()
            }  # fmt: skip
        return metadata


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A run with the local executor."""
    for program, package in REQUIRED_PROGRAMS.items():
        if shutil.which(program) is None:
            report_missing(f"{program} is not installed (apt-get install {package})")
    return Run(tmp_path_factory.mktemp("local"), os.environ, "--cores", "4")


@pytest.fixture(scope="module")
def remote(cluster, local, tmp_path_factory):
    """A run with this executor on SLURM."""
    folder = tmp_path_factory.mktemp("remote")
    with Toy(folder / "work", cluster) as toy:
        run = Run(folder, toy.environment, "--executor", "submitit", "--jobs", "50")
        run.jobs = toy.final_states()
        yield run


def test_all_files_are_the_same(local, remote):
    expected, actual = local.files(), remote.files()
    assert sorted(actual) == sorted(expected)
    different = {name for name in expected if actual[name] != expected[name]}
    # Parameters from resources: the local executor does not update them in a second attempt.
    assert different == {"retried.attempts", "retried.txt"}


def test_snakemake_records_the_same_provenance(local, remote):
    expected, actual = local.metadata(), remote.metadata()
    assert sorted(actual) == sorted(expected)
    assert {name: actual[name] for name in expected if actual[name] != expected[name]} == {}


def test_no_incomplete_markers_remain(local, remote):
    assert local.records("incomplete") == remote.records("incomplete") == {}


def test_a_job_or_group_is_one_slurm_job_and_a_local_rule_is_none(local, remote):
    rules = remote.finished()
    assert rules == local.finished()
    single = [rule for rule in rules if rule not in LOCAL.union(*GROUPED)]
    states = sorted(remote.jobs.values())
    assert states == ["COMPLETED"] * (len(single) + len(GROUPED)) + ["FAILED"] * RETRIES


def test_local_rules_run_on_the_submitting_host(remote):
    for name in ("by_list", "by_directive", "handover"):
        assert (remote.work / "local" / f"{name}.txt").read_text() == "none\n"


def test_temporary_files_pipes_and_services_are_removed(remote):
    for name in ("temporary/file.txt", "temporary/folder", "groups/piped.txt",
                 "groups/service.fifo", "groups/first_one.txt"):  # fmt: skip
        assert not (remote.work / name).exists()


@pytest.mark.parametrize("folder", ["shadow", "scripts", "incomplete"])
def test_snakemakes_own_folders_are_empty(remote, folder):
    assert [*(remote.work / ".snakemake").glob(f"{folder}/*")] == []


def test_protected_outputs_are_read_only(remote):
    mode = (remote.work / "flags" / "protected.txt").stat().st_mode
    assert mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) == 0


def test_files_in_a_shadow_directory_are_not_copied_unless_outputs(remote):
    assert "left_by_shadow" in (remote.work / "logs" / "shadow_full.log").read_text()
    assert not (remote.work / "left_by_shadow").exists()


def test_an_attempt_has_its_own_threads_resources_and_parameters(remote):
    lines = (remote.work / "retried.txt").read_text().splitlines()
    assert lines == ["1 500 a,'b' one and\ttwo 5", "2 600 a,'b' one and\ttwo 6"]


def test_the_workflow_profile_applies_within_jobs(remote):
    assert (remote.work / "profile.txt").read_text() == "2 profile 500 5\n"
    assert sorted(path.name for path in (remote.work / "split").iterdir()) == [
        "1-of-2.txt", "2-of-2.txt"
    ]  # fmt: skip


def test_environment_variables_and_config_values_are_unchanged(remote):
    text = (remote.work / "parameters" / "shell.txt").read_text()
    assert text.count("it's $HOME ü") == 2 and "'extra': \"it's $HOME\"" in text


def test_cached_outputs_are_stored(local, remote):
    (expected,), (actual,) = (sorted((run.folder / "cache").iterdir()) for run in (local, remote))
    assert actual.name == expected.name and actual.read_bytes() == expected.read_bytes()


def test_jobs_retrieve_and_store_files_of_a_storage(remote):
    text = (remote.work / "fetched.txt").read_text()
    assert text == "it's stored.txt preferred\nstored\n\nit's again.txt preferred\nagain\n\n"
    assert sorted(path.name for path in (remote.work / "vault").iterdir()) == [
        "it's again.txt", "it's stored.txt"
    ]  # fmt: skip


def test_a_script_in_r_has_its_parameters(remote):
    lines = (remote.work / "parameters" / "r.txt").read_text().splitlines()
    assert lines == ['it\'s "quoted"; $HOME `id` \\ %s ü 日本', "-3", "6", "ordered.txt"]


def test_hooks_run_once_and_not_in_jobs(remote):
    assert (remote.work / "onsuccess.txt").read_text() == "success\n"


def test_a_benchmark_has_a_line_for_each_repetition(remote):
    assert len((remote.work / "logs" / "flags.tsv").read_text().splitlines()) == 3


def test_successful_jobs_leave_no_files(remote):
    """Only the log of the failed first attempt at `retried` stays."""
    folder = remote.work / ".snakemake" / "submitit"
    assert [*(folder / "jobs").glob("*.json")] == [*folder.glob("*.pkl")] == []
    assert len([*folder.glob("*_log.out")]) == RETRIES


@pytest.mark.parametrize("executor", ["local", "remote"])
def test_a_second_run_has_nothing_to_do(request, executor):
    run = request.getfixturevalue(executor)
    assert "Nothing to be done" in run.start("everything")
