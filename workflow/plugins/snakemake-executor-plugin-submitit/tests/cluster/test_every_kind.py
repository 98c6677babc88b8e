"""A workflow of every kind of rule: this executor makes of it what Snakemake's local one does."""

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
"""Attempts at `retried` before the one that succeeds."""
LOCAL = {"everything", "by_list", "by_directive", "handed_over", "by_template"}
GROUPED = [{"first", "second"}, {"piped", "counted"}, {"served", "asked"}]

NEEDED = {"Rscript": "r-base-core", "rsync": "rsync"}
"""Programs of its rules -> the Debian packages that bring them."""

pytestmark = pytest.mark.xdist_group("every_kind")  # which is run once


class Run:
    """The workflow in a folder of its own, run to its end."""

    jobs: dict[str, str]
    """States by number of the jobs that SLURM had of it."""

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
        self.said = self.start("everything", "announce")

    def start(self, *targets):
        """Run Snakemake to its end, and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *OPTIONS, *self._executor, *targets],
            cwd=self.folder, env=self._environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def files(self):
        """Return kind, permissions and content of everything in the working directory."""
        found = {}
        for folder, folders, names in os.walk(self.work):
            if ".snakemake" in folders:
                folders.remove(".snakemake")
            for path in (Path(folder) / name for name in folders + names):
                state = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(state.st_mode) else None
                if path.suffix == ".tsv":  # a benchmark
                    content = [line.split(b"\t")[2:3] for line in content.splitlines()[:1]]
                name = str(path.relative_to(self.work))
                found[name] = (stat.filemode(state.st_mode), content)
        return found

    def records(self, kind):
        """Return Snakemake's records of a kind by the names of outputs."""
        folder = self.work / ".snakemake" / kind
        found = {}
        for path in filter(Path.is_file, folder.rglob("*")):
            name = "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
            found[base64.urlsafe_b64decode(name).decode()] = json.loads(path.read_text())
        return found

    def finished(self):
        """Return the rule of each job that the first start ran, in alphabetical order."""
        return sorted(re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)$", self.said, flags=re.M))

    def metadata(self):
        """Return what is on record of each output, without times, and checksums of what is gone.

        Those of temporary files are on record only where no group made and removed them.
        """
        own = ("starttime", "endtime", "job_hash")
        found = {}
        for output, record in self.records("metadata").items():
            found[output] = {name: value for name, value in record.items() if name not in own}
            found[output]["input_checksums"] = {
                path: checksum for path, checksum in record["input_checksums"].items()
                if (self.work / path).exists()
            }  # fmt: skip
        return found


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """What the local executor makes of it."""
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            report_missing(f"{program} is not installed (apt-get install {package})")
    return Run(tmp_path_factory.mktemp("local"), os.environ, "--cores", "4")


@pytest.fixture(scope="module")
def remote(cluster, local, tmp_path_factory):
    """What this executor makes of it; with the jobs that SLURM then knows."""
    folder = tmp_path_factory.mktemp("remote")
    with Toy(folder / "work", cluster) as toy:
        run = Run(folder, toy.environment, "--executor", "submitit", "--jobs", "50")
        run.jobs = toy.ended()
        yield run


def test_all_files_are_the_same(local, remote):
    expected, found = local.files(), remote.files()
    assert sorted(found) == sorted(expected)
    different = {each for each in expected if found[each] != expected[each]}
    # What parameters take from resources: there the local executor keeps to its first attempt.
    assert different == {"retried.attempts", "retried.txt"}


def test_what_outputs_were_made_with_is_on_record_alike(local, remote):
    expected, found = local.metadata(), remote.metadata()
    assert sorted(found) == sorted(expected)
    assert {each: found[each] for each in expected if found[each] != expected[each]} == {}


def test_no_output_is_left_marked_as_unfinished(local, remote):
    assert local.records("incomplete") == remote.records("incomplete") == {}


def test_each_job_is_one_of_slurm_groups_share_one_and_local_rules_are_none(local, remote):
    rules = remote.finished()
    assert rules == local.finished()
    single = [each for each in rules if each not in LOCAL.union(*GROUPED)]
    states = sorted(remote.jobs.values())
    assert states == ["COMPLETED"] * (len(single) + len(GROUPED)) + ["FAILED"] * RETRIES


def test_local_rules_ran_beside_snakemake(remote):
    for name in ("by_list", "by_directive", "handover"):
        assert (remote.work / "local" / f"{name}.txt").read_text() == "none\n"


def test_temporary_files_pipes_and_services_are_gone(remote):
    for name in ("temporary/file.txt", "temporary/folder", "groups/piped.txt",
                 "groups/service.fifo", "groups/first_one.txt"):  # fmt: skip
        assert not (remote.work / name).exists()


@pytest.mark.parametrize("folder", ["shadow", "scripts", "incomplete"])
def test_nothing_is_left_in_snakemakes_own_folders(remote, folder):
    assert [*(remote.work / ".snakemake").glob(f"{folder}/*")] == []


def test_protected_outputs_are_read_only(remote):
    mode = (remote.work / "flags" / "protected.txt").stat().st_mode
    assert mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) == 0


def test_a_shadow_keeps_what_is_not_an_output(remote):
    assert "left_by_shadow" in (remote.work / "logs" / "shadow_full.log").read_text()
    assert not (remote.work / "left_by_shadow").exists()


def test_an_attempt_has_its_own_threads_resources_and_parameters(remote):
    lines = (remote.work / "retried.txt").read_text().splitlines()
    assert lines == ["1 500 a,'b' one and\ttwo 5", "2 600 a,'b' one and\ttwo 6"]


def test_the_profile_of_the_workflow_holds_within_jobs(remote):
    assert (remote.work / "profile.txt").read_text() == "2 profile 500 5\n"
    assert sorted(path.name for path in (remote.work / "split").iterdir()) == [
        "1-of-2.txt", "2-of-2.txt"
    ]  # fmt: skip


def test_a_variable_and_a_word_of_the_configuration_come_as_they_are(remote):
    text = (remote.work / "parameters" / "shell.txt").read_text()
    assert text.count("it's $HOME ü") == 2 and "'extra': \"it's $HOME\"" in text


def test_what_may_be_cached_is_stored(local, remote):
    (expected,), (found,) = (sorted((run.folder / "cache").iterdir()) for run in (local, remote))
    assert found.name == expected.name and found.read_bytes() == expected.read_bytes()


def test_files_of_a_storage_are_fetched_and_brought_by_jobs(remote):
    text = (remote.work / "fetched.txt").read_text()
    assert text == "it's stored.txt preferred\nstored\n\nit's again.txt preferred\nagain\n\n"
    assert sorted(each.name for each in (remote.work / "vault").iterdir()) == [
        "it's again.txt", "it's stored.txt"
    ]  # fmt: skip


def test_a_script_in_r_has_its_parameters(remote):
    lines = (remote.work / "parameters" / "r.txt").read_text().splitlines()
    assert lines == ['it\'s "quoted"; $HOME `id` \\ %s ü 日本', "-3", "6", "ordered.txt"]


def test_hooks_run_once_and_not_in_jobs(remote):
    assert (remote.work / "onsuccess.txt").read_text() == "success\n"


def test_a_benchmark_has_a_line_for_each_repetition(remote):
    assert len((remote.work / "logs" / "flags.tsv").read_text().splitlines()) == 3


def test_nothing_is_left_of_jobs_that_succeeded(remote):
    """One job failed, whose log stays: the first attempt at `retried`."""
    folder = remote.work / ".snakemake" / "submitit"
    assert [*(folder / "jobs").glob("*.json")] == [*folder.glob("*.pkl")] == []
    assert len([*folder.glob("*_log.out")]) == RETRIES


@pytest.mark.parametrize("executor", ["local", "remote"])
def test_a_second_start_has_nothing_to_do(request, executor):
    run = request.getfixturevalue(executor)
    assert "Nothing to be done" in run.start("everything")
