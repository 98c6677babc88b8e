"""Jobs that fail, with one line of explanation, and temporary failures of SLURM."""

import re
import signal
import stat
import time

import pytest

from testbed.slurm import Cluster, Settings
from testbed.toy_workflow import Toy, message, messages, rule, training_rule
from testbed.waiting import wait_for


def shim(toy, program, script):
    """Replace a program on PATH by a script, which may call the real one as $REAL."""
    folder = toy.folder / "shims"
    folder.mkdir(exist_ok=True)
    path = folder / program
    path.write_text(f"#!/bin/bash\nREAL=/usr/bin/{program}\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    if str(folder) not in toy.environment["PATH"]:
        toy.environment["PATH"] = f"{folder}:{toy.environment['PATH']}"


class Outage:
    """Programs of SLURM that fail, and log their calls, until `end`."""

    def __init__(self, toy, *programs):
        self._flag, self._calls = toy.folder / "outage", toy.folder / "calls"
        self._flag.touch()
        self._calls.touch()
        for program in programs:
            shim(
                toy,
                program,
                f'if [ -e {self._flag} ]; then echo "{program} $*" >> {self._calls}\n'
                f"echo '{program}: error: Unable to contact slurm controller' >&2\n"
                'exit 1; fi\nexec $REAL "$@"',
            )

    def calls(self, command):
        """Return how often a command with this beginning was called."""
        return sum(line.startswith(command) for line in self._calls.read_text().splitlines())

    def end(self):
        self._flag.unlink()


# --- a rule's retries -----------------------------------------------------------------------------

RETRIED = """
rule {name}:
    output: '{name}.txt'
    retries: 2
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 300,
        runtime=lambda wildcards, attempt: attempt + 5,
    shell: 'scontrol show job $SLURM_JOB_ID | grep -o "TimeLimit=[0-9:]*\\|MinMemoryNode=[0-9]*"'
        ' >> {name}.seen; echo {{resources.mem_mb}} >> {name}.seen; '
        '[ $(grep -c Time {name}.seen) -eq 3 ] && touch {{output}}'
"""


def test_a_retry_is_a_new_job_with_the_resources_of_its_attempt(toy):
    grouped = RETRIED.format(name="grouped").replace("retries", "group: 'g'\n    retries")
    toy.write(f"rule all:\n    input: 'alone.txt', 'grouped.txt'\n{RETRIED.format(name='alone')}"
              f"{grouped}")  # fmt: skip
    toy.succeed("all")
    expected = [
        line for attempt in (1, 2, 3)
        for line in (f"TimeLimit=00:0{attempt + 5}:00", f"MinMemoryNode={attempt * 300}",
                     str(attempt * 300))
    ]  # fmt: skip
    for name in ("alone", "grouped"):
        assert (toy.folder / f"{name}.seen").read_text().split() == expected
    assert sorted(toy.final_states().values()) == ["COMPLETED"] * 2 + ["FAILED"] * 4


# --- one line of explanation ----------------------------------------------------------------------

WORKFLOW = "".join(
    [
        rule("echo one; echo 'recipe is wrong' >&2; exit 4", "code"),
        training_rule(name="own_log", steps="five"),
        rule("python3 -c 'x = bytearray(900 * 2**20); import time; time.sleep(600)'", "memory"),
        rule("touch {output}", "partition", slurm_partition="nowhere"),
        rule("touch {output}", "account", slurm_account="nowhere"),
        rule("touch {output}", "gpus", gpus_per_node=64),
    ]
)
FAILING = pytest.mark.xdist_group("failing_jobs")  # run once


@pytest.fixture(scope="module")
def failing(cluster, tmp_path_factory):
    """A workflow whose rules fail for different reasons, and the message about each rule."""
    with Toy(tmp_path_factory.mktemp("failing") / "toy", cluster) as toy:
        names = re.findall(r"rule (\w+):", WORKFLOW)
        toy.write(f"rule all:\n    input: {[f'{name}.txt' for name in names]}\n{WORKFLOW}")
        # New processes below each job: SLURM counts their memory.
        output = toy.start_process("--keep-going").fail()
        by_rule = messages(output)
        assert set(by_rule) == set(names), output
        yield toy, by_rule


@FAILING
def test_a_failed_command_is_reported_with_its_exit_code_and_last_lines(failing):
    line = failing[1]["code"]
    assert re.match(r"job \d+: FAILED \(exit 4\); log /\S+_0_log.out: one \| recipe is wrong", line)


@FAILING
@pytest.mark.parametrize(("name", "code"), [("code", 4), ("own_log", 1)])
def test_slurm_has_the_exit_code_of_the_command(failing, name, code):
    """Accounting, mails and jobs with --dependency=afterok depend on it."""
    toy, by_rule = failing
    job = re.match(r"job (\d+)", by_rule[name])[1]
    description = toy.cluster.run("scontrol", "show", "job", job).stdout
    assert "JobState=FAILED" in description and f" ExitCode={code}:0" in description


@FAILING
def test_the_last_lines_of_the_rules_own_log_are_quoted(failing):
    line = failing[1]["own_log"]
    assert "logs/own_log.log: " in line
    assert "invalid literal for int() with base 10: 'five'" in line


@FAILING
def test_out_of_memory(failing):
    line = failing[1]["memory"]
    assert "OUT_OF_MEMORY" in line and "raise mem_mb" in line
    assert "Exceeded job memory limit" in line


@FAILING
@pytest.mark.parametrize("name", ["partition", "account"])
def test_an_unknown_partition_or_account_is_rejected_by_sbatch(failing, name):
    assert failing[1][name].startswith("rejected by sbatch: ")
    assert name in failing[1][name].lower()


@FAILING
def test_more_gpus_than_any_node_has_are_rejected_by_sbatch(failing):
    assert "Requested node configuration is not available" in failing[1]["gpus"]


@FAILING
def test_failed_jobs_run_once_and_leave_only_their_logs(failing):
    folder = failing[0].folder / ".snakemake" / "submitit"
    assert len(list(folder.glob("*_log.out"))) == 3
    assert failing[0].records() == []
    assert not list(folder.glob("*.pkl"))


def test_scancel_by_the_user(toy, cluster):
    toy.write(training_rule())
    driver = toy.start_process()
    job = toy.await_training(1, driver)
    cluster.run("scancel", job)
    line = message(driver.fail())
    assert f"job {job}: CANCELLED by " in line
    assert "start Snakemake again to run it again" in line
    assert list(toy.jobs()) == [job]


def test_a_folder_that_is_not_visible_on_the_node(toy):
    """The node cannot open the log: here because sbatch gets a folder that does not exist."""
    toy.write(rule("touch {output}"))
    shim(toy, "sbatch", 'exec $REAL "${@/#--output=*/--output=/nowhere/%j.out}"')
    line = toy.fail()
    assert re.search(
        r"job \d+ ended on n\d and wrote no log in /\S+: is this folder visible on n\d", line
    )


def test_a_missing_python_on_the_node(toy):
    toy.write(rule("touch {output}"))
    line = toy.fail(python="/opt/nowhere/python")
    assert "the job step did not start" in line and "/opt/nowhere/python" in line


def test_a_misspelt_resource_is_an_error_before_any_submission(toy):
    toy.write(rule("touch {output}", slurm_partiton="gpu", mem_gb=4))
    output = toy.start().fail()
    (line,) = [line for line in output.splitlines() if "unknown resource" in line]
    assert "slurm_partiton of rule r (did you mean slurm_partition?)" in line
    assert "mem_gb of rule r (did you mean mem_mb?)" in line
    assert "valid: runtime, mem_mb, " in line
    assert toy.jobs() == {}


# --- temporary failures of SLURM ------------------------------------------------------------------


def test_temporary_failures_of_squeue_and_scontrol_only_delay(toy, cluster):
    """Snakemake polls with squeue; the job requeues itself with scontrol."""
    outage = Outage(toy, "squeue", "scontrol")
    toy.write(training_rule())
    driver = toy.start_process()
    job = toy.await_training(1, driver)
    cluster.run("scancel", "--batch", "--signal=USR2", job)
    driver.await_that(lambda: outage.calls("scontrol requeue") and outage.calls("squeue"))
    outage.end()
    toy.await_training(2, driver)
    toy.let_finish()
    assert "SLURM does not answer; jobs keep running" in driver.succeed()
    assert len(toy.jobs()) == 1 and len(toy.starts()) == 2


def test_the_final_state_comes_from_squeue_if_sacct_and_scontrol_fail(toy):
    outage = Outage(toy, "sacct", "scontrol")
    toy.write(training_rule())
    driver = toy.start()
    job = toy.await_training(1, driver)
    toy.kill_batch(job)
    driver.await_that(lambda: outage.calls("sacct") and outage.calls("scontrol --oneliner show"))
    outage.end()
    toy.await_training(2, driver)
    toy.let_finish()
    assert re.search(r"ended without a result: FAILED.*; resubmitted", driver.succeed())


def test_a_job_that_squeue_does_not_list_is_not_resubmitted(toy):
    """Otherwise two jobs would write the same output."""
    shim(
        toy,
        "squeue",
        f'echo >> {toy.folder}/calls; [ -e {toy.folder}/go ] && exec $REAL "$@"; exit 0',
    )
    toy.write(rule("echo >> started; until [ -e go ]; do sleep 0.1; done; touch {output}"))
    driver = toy.start()
    driver.await_that(
        lambda: (
            (toy.folder / "calls").exists()
            and len((toy.folder / "calls").read_text().splitlines()) >= 5
            and (toy.folder / "started").exists()
        )
    )
    (toy.folder / "go").touch()
    driver.succeed()
    assert len((toy.folder / "started").read_text().splitlines()) == 1
    assert len(toy.jobs()) == 1


def test_temporary_failures_of_sbatch_only_delay(toy):
    outage = Outage(toy, "sbatch")
    toy.write(training_rule(steps=1))
    driver = toy.start()
    driver.await_that(lambda: outage.calls("sbatch") >= 2)
    outage.end()
    assert "failed, to be retried" in driver.succeed()
    assert len(toy.jobs()) == len(toy.starts()) == 1


def test_a_submission_with_a_lost_answer_leaves_one_job(toy):
    """sbatch reports a timeout, but the job is in the queue."""
    toy.write(training_rule(steps=1))
    shim(
        toy,
        "sbatch",
        'if [ ! -e "$(dirname "$0")/lost" ]; then touch "$(dirname "$0")/lost"; $REAL "$@"'
        ' > /dev/null; echo "sbatch: error: Socket timed out on send/recv operation" >&2;'
        ' exit 1; fi\nexec $REAL "$@"',
    )
    toy.succeed()
    states = toy.final_states()
    first, second = (states[job] for job in sorted(states, key=int))
    assert first in ("CANCELLED", "FAILED")  # FAILED if it was cancelled while it started
    assert second == "COMPLETED"
    assert len(toy.starts()) == 1


def test_a_restart_of_the_controller_only_delays(toy, cluster):
    toy.write(training_rule())
    driver = toy.start()
    toy.await_training(1, driver)
    cluster.controller_down()
    try:
        driver.await_that(lambda: "SLURM does not answer" in driver.output())
    finally:
        cluster.controller_up()
    driver.await_that(lambda: "SLURM answers again" in driver.output())
    toy.let_finish()
    driver.succeed()
    assert len(toy.starts()) == 1


def test_a_submission_without_an_answer_fails_after_the_timeout(toy):
    shim(toy, "sbatch", "echo 'sbatch: error: Socket timed out' >&2; exit 1")
    toy.write(rule("touch {output}"))
    line = toy.fail(submit_timeout=3)
    assert re.match(
        r"not submitted within \d+ s \(submitit-submit-timeout\): Socket timed out", line
    )


def test_a_held_job_is_reported(toy, cluster):
    toy.write(training_rule(steps=1, slurm_extra="--hold"))
    driver = toy.start()
    driver.await_that(lambda: "is held (JobHeldUser)" in driver.output())
    (job,) = toy.jobs()
    assert f"to release: scontrol release {job}" in driver.output()
    cluster.run("scontrol", "release", job)
    driver.succeed()


def test_without_accounting(tmp_path, tmp_path_factory, cluster):
    """On a cluster of its own without slurmdbd."""
    settings = Settings(accounting=False)
    with (
        Cluster(tmp_path_factory.mktemp("plain"), settings, tied=True) as plain,
        Toy(tmp_path / "toy", plain) as toy,
    ):
        toy.write("rule all:\n    input: 'r.txt', 'train.txt'\n"
                  + rule("touch {output}") + training_rule())  # fmt: skip
        driver = toy.start_process("--keep-going")
        job = toy.await_training(1, driver)
        plain.run("scontrol", "requeue", job)
        job = toy.await_training(2, driver)
        driver.await_that((toy.folder / "r.txt").exists)
        plain.run("scancel", job)
        output = driver.fail()
        assert set(messages(output)) == {"train"}
        assert f"job {job}: CANCELLED" in message(output)


# --- load on the controller -----------------------------------------------------------------------


def test_one_poll_of_squeue_covers_all_jobs(toy):
    calls = toy.folder / "calls"
    calls.touch()
    for program in ("squeue", "sacct", "scontrol"):
        shim(toy, program, f'echo {program} >> {calls}\nexec $REAL "$@"')
    toy.write(
        "rule all:\n    input: expand('{i}.txt', i=range(4))\n"
        + rule("until [ -e go ]; do sleep 0.1; done; touch {output}").replace(
            "'r.txt'", "'{i}.txt'"
        )
    )
    programs = lambda: calls.read_text().split()  # noqa: E731
    start = time.monotonic()
    driver = toy.start(status_interval=3)
    driver.await_that(lambda: len(programs()) >= 3)
    (toy.folder / "go").touch()
    driver.succeed()
    seconds = time.monotonic() - start
    assert set(programs()) == {"squeue"}
    assert len(programs()) <= seconds / 3 + 1


def test_short_jobs_need_no_poll_of_slurm(toy):
    """Jobs that end within the first status interval are not polled."""
    calls = toy.folder / "calls"
    for program in ("squeue", "sacct", "scontrol"):
        shim(toy, program, f"echo {program} >> {calls}\nexit 1")
    toy.write(rule("touch {output}"))
    toy.succeed(status_interval=600)
    assert len(calls.read_text().split()) <= 1


# --- interruption ---------------------------------------------------------------------------------


def test_ctrl_c_reports_jobs_that_could_not_be_cancelled(toy):
    shim(toy, "scancel", "exit 1")
    toy.write(training_rule())
    driver = toy.start()
    job = toy.await_training(1, driver)
    driver.await_that(lambda: any(record["job_id"] for record in toy.records()))
    driver.send_signal(signal.SIGINT)
    assert f"to cancel the jobs: scancel {job}" in driver.finish()
    toy.cluster.run("scancel", job)
    wait_for(lambda: toy.jobs()[job] == "CANCELLED")


def test_ignored_sigint_is_reported_with_the_signals_that_work(toy):
    """As in the background of a script, whose children inherit it as ignored."""
    toy.write(training_rule())
    driver = toy.start_process(ignored=[signal.SIGINT])
    job = toy.await_training(1, driver)
    (line,) = [line for line in driver.output().splitlines() if "SIGINT is ignored" in line]
    assert f"kill -TERM {driver.process.pid}" in line and "Ctrl-C" in line
    driver.send_signal(signal.SIGINT)
    driver.send_signal(signal.SIGTERM)
    driver.await_that(lambda: "Will exit after finishing currently running jobs" in driver.output())
    toy.let_finish()
    driver.finish()
    assert toy.final_states() == {job: "COMPLETED"}
