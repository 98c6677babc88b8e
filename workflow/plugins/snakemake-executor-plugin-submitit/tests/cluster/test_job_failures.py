"""Jobs that fail for good: one line says why, where, and what to do. And SLURM that is away."""

import re
import signal
import stat
import time

import pytest

from testbed.slurm import Cluster, Settings
from testbed.toy_workflow import Toy, message, messages, rule, training_rule
from testbed.waiting import wait_for


def shim(toy, program, script):
    """Put a program of this name before the real one, which the script may call as $REAL."""
    folder = toy.folder / "shims"
    folder.mkdir(exist_ok=True)
    path = folder / program
    path.write_text(f"#!/bin/bash\nREAL=/usr/bin/{program}\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    if str(folder) not in toy.environment["PATH"]:
        toy.environment["PATH"] = f"{folder}:{toy.environment['PATH']}"


class Away:
    """Programs of SLURM that fail, and note each time, until they are let `back`."""

    def __init__(self, toy, *programs):
        self._mark, self._calls = toy.folder / "away", toy.folder / "calls"
        self._mark.touch()
        self._calls.touch()
        for program in programs:
            shim(
                toy,
                program,
                f'if [ -e {self._mark} ]; then echo "{program} $*" >> {self._calls}\n'
                f"echo '{program}: error: Unable to contact slurm controller' >&2\n"
                'exit 1; fi\nexec $REAL "$@"',
            )

    def calls(self, command):
        """Return how often a command that begins so has failed."""
        return sum(each.startswith(command) for each in self._calls.read_text().splitlines())

    def back(self):
        self._mark.unlink()


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


def test_retries_are_jobs_of_their_own_with_the_resources_of_that_attempt(toy):
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
    assert sorted(toy.ended().values()) == ["COMPLETED"] * 2 + ["FAILED"] * 4


# --- one line that explains -----------------------------------------------------------------------

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
FAILING = pytest.mark.xdist_group("failing_jobs")  # which are run once


@pytest.fixture(scope="module")
def failing(cluster, tmp_path_factory):
    """A workflow of rules that fail, each for a reason of its own, and what was said of each."""
    with Toy(tmp_path_factory.mktemp("failing") / "toy", cluster) as toy:
        names = re.findall(r"rule (\w+):", WORKFLOW)
        toy.write(f"rule all:\n    input: {[f'{name}.txt' for name in names]}\n{WORKFLOW}")
        said = toy.start("--keep-going").fail()
        assert set(messages(said)) == set(names), said
        yield toy, messages(said)


@FAILING
def test_a_command_that_fails_shows_its_code_and_its_last_words(failing):
    line = failing[1]["code"]
    assert re.match(r"job \d+: FAILED \(exit 4\); log /\S+_0_log.out: one \| recipe is wrong", line)


@FAILING
@pytest.mark.parametrize(("name", "code"), [("code", 4), ("own_log", 1)])
def test_for_slurm_it_has_failed_with_that_code(failing, name, code):
    """So that accounting, mails and jobs with --dependency=afterok know."""
    toy, said = failing
    job = re.match(r"job (\d+)", said[name])[1]
    shown = toy.cluster.run("scontrol", "show", "job", job).stdout
    assert "JobState=FAILED" in shown and f" ExitCode={code}:0" in shown


@FAILING
def test_the_end_of_the_rules_own_log_is_shown(failing):
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
def test_a_wrong_name_is_refused_at_submission(failing, name):
    assert failing[1][name].startswith("refused at submission: ")
    assert name in failing[1][name].lower()


@FAILING
def test_more_gpus_than_any_node_has_are_refused(failing):
    assert "Requested node configuration is not available" in failing[1]["gpus"]


@FAILING
def test_what_fails_is_tried_once_and_forgotten(failing):
    folder = failing[0].folder / ".snakemake" / "submitit"
    assert len(list(folder.glob("*_log.out"))) == 3
    assert failing[0].records() == []
    assert not list(folder.glob("*.pkl"))


def test_cancelled_by_the_user(toy, cluster):
    toy.write(training_rule())
    driver = toy.start()
    job = toy.await_training(1, driver)
    cluster.run("scancel", job)
    line = message(driver.fail())
    assert f"job {job}: CANCELLED by " in line
    assert "start Snakemake again to run it again" in line
    assert list(toy.jobs()) == [job]


def test_a_folder_that_a_node_does_not_see(toy):
    """SLURM cannot open the log there: here, because it is told of a folder that does not exist."""
    toy.write(rule("touch {output}"))
    shim(toy, "sbatch", 'exec $REAL "${@/#--output=*/--output=/nowhere/%j.out}"')
    line = toy.fail()
    assert re.search(r"job \d+ ended on n\d and left no trace in /\S+: does n\d see this", line)


def test_python_that_is_missing_on_the_node(toy):
    toy.write(rule("touch {output}"))
    line = toy.fail(python="/opt/nowhere/python")
    assert "never reached its first line" in line and "/opt/nowhere/python" in line


def test_a_misspelt_resource_is_named_before_anything_is_submitted(toy):
    toy.write(rule("touch {output}", slurm_partiton="gpu", mem_gb=4))
    (line,) = [each for each in toy.start().fail().splitlines() if "unknown resource" in each]
    assert "slurm_partiton of rule r (meant: slurm_partition?)" in line
    assert "mem_gb of rule r (meant: mem_mb?)" in line
    assert "valid: runtime, mem_mb, " in line
    assert toy.jobs() == {}


# --- a SLURM that is away for a while -------------------------------------------------------------


def test_squeue_and_scontrol_that_fail_for_a_while_only_delay(toy, cluster):
    """The driver asks one of them how its jobs are; the job asks the other to be requeued."""
    away = Away(toy, "squeue", "scontrol")
    toy.write(training_rule())
    driver = toy.start()
    job = toy.await_training(1, driver)
    cluster.run("scancel", "--batch", "--signal=USR2", job)
    driver.await_that(lambda: away.calls("scontrol requeue") and away.calls("squeue"))
    away.back()
    toy.await_training(2, driver)
    toy.let_finish()
    assert "SLURM does not answer; jobs go on" in driver.succeed()
    assert len(toy.jobs()) == 1 and len(toy.starts()) == 2


def test_a_job_of_which_neither_sacct_nor_scontrol_tells_is_believed_to_be_as_squeue_says(toy):
    away = Away(toy, "sacct", "scontrol")
    toy.write(training_rule())
    driver = toy.start()
    job = toy.await_training(1, driver)
    toy.kill_batch(job)
    driver.await_that(lambda: away.calls("sacct") and away.calls("scontrol --oneliner show"))
    away.back()
    toy.await_training(2, driver)
    toy.let_finish()
    assert re.search(r"ended without a result: FAILED.*; it is submitted again", driver.succeed())


def test_a_job_that_squeue_does_not_list_is_not_gone_for_that(toy):
    """Two would else run on one output."""
    shim(
        toy,
        "squeue",
        f'echo >> {toy.folder}/asked; [ -e {toy.folder}/go ] && exec $REAL "$@"; exit 0',
    )
    toy.write(rule("echo >> begun; until [ -e go ]; do sleep 0.1; done; touch {output}"))
    driver = toy.start()
    driver.await_that(
        lambda: (
            (toy.folder / "asked").exists()
            and len((toy.folder / "asked").read_text().splitlines()) >= 5
            and (toy.folder / "begun").exists()
        )
    )
    (toy.folder / "go").touch()
    driver.succeed()
    assert len((toy.folder / "begun").read_text().splitlines()) == 1
    assert len(toy.jobs()) == 1


def test_sbatch_that_fails_for_a_while_only_delays(toy):
    away = Away(toy, "sbatch")
    toy.write(training_rule(steps=1))
    driver = toy.start()
    driver.await_that(lambda: away.calls("sbatch") >= 2)
    away.back()
    assert "is submitted later" in driver.succeed()
    assert len(toy.jobs()) == len(toy.starts()) == 1


def test_a_submission_whose_answer_was_lost_leaves_one_job(toy):
    """sbatch says that it timed out, and yet the job is in the queue."""
    toy.write(training_rule(steps=1))
    shim(
        toy,
        "sbatch",
        'if [ ! -e "$(dirname "$0")/lost" ]; then touch "$(dirname "$0")/lost"; $REAL "$@"'
        ' > /dev/null; echo "sbatch: error: Socket timed out on send/recv operation" >&2;'
        ' exit 1; fi\nexec $REAL "$@"',
    )
    toy.succeed()
    states = toy.ended()
    lost, made = (states[job] for job in sorted(states, key=int))
    assert lost in ("CANCELLED", "FAILED") and made == "COMPLETED"  # FAILED: while it started
    assert len(toy.starts()) == 1


def test_a_controller_that_restarts_is_waited_for(toy, cluster):
    toy.write(training_rule())
    driver = toy.start()
    toy.await_training(1, driver)
    cluster.controller_down()
    try:
        driver.await_that(lambda: "SLURM does not answer" in driver.said())
    finally:
        cluster.controller_up()
    driver.await_that(lambda: "SLURM answers again" in driver.said())
    toy.let_finish()
    driver.succeed()
    assert len(toy.starts()) == 1


def test_a_submission_that_is_never_answered_ends(toy):
    shim(toy, "sbatch", "echo 'sbatch: error: Socket timed out' >&2; exit 1")
    toy.write(rule("touch {output}"))
    line = toy.fail(submit_timeout=3)
    assert re.match(
        r"not submitted within \d+ s \(submitit-submit-timeout\): Socket timed out", line
    )


def test_a_job_that_is_held_is_named(toy, cluster):
    toy.write(training_rule(steps=1, slurm_extra="--hold"))
    driver = toy.start()
    driver.await_that(lambda: "is held (JobHeldUser)" in driver.said())
    (job,) = toy.jobs()
    assert f"to let it go on: scontrol release {job}" in driver.said()
    cluster.run("scontrol", "release", job)
    driver.succeed()


def test_without_accounting(tmp_path, tmp_path_factory, cluster):
    """On a cluster of its own that has neither sacct's database nor any other."""
    settings = Settings(accounting=False)
    with (
        Cluster(tmp_path_factory.mktemp("plain"), settings, tied=True) as plain,
        Toy(tmp_path / "toy", plain) as toy,
    ):
        toy.write("rule all:\n    input: 'r.txt', 'train.txt'\n"
                  + rule("touch {output}") + training_rule())  # fmt: skip
        driver = toy.start("--keep-going")
        job = toy.await_training(1, driver)
        plain.run("scontrol", "requeue", job)
        job = toy.await_training(2, driver)
        driver.await_that((toy.folder / "r.txt").exists)
        plain.run("scancel", job)
        said = driver.fail()
        assert set(messages(said)) == {"train"}
        assert f"job {job}: CANCELLED" in message(said)


# --- what it costs the controller -----------------------------------------------------------------


def test_one_question_for_all_jobs(toy):
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
    asked = lambda: calls.read_text().split()  # noqa: E731
    begun = time.monotonic()
    driver = toy.start(status_interval=3)
    driver.await_that(lambda: len(asked()) >= 3)
    (toy.folder / "go").touch()
    driver.succeed()
    seconds = time.monotonic() - begun
    assert set(asked()) == {"squeue"}
    assert len(asked()) <= seconds / 3 + 1


def test_result_files_are_enough(toy):
    """No question at all is asked for jobs that end within the first interval."""
    calls = toy.folder / "calls"
    for program in ("squeue", "sacct", "scontrol"):
        shim(toy, program, f"echo {program} >> {calls}\nexit 1")
    toy.write(rule("touch {output}"))
    toy.succeed(status_interval=600)
    assert len(calls.read_text().split()) <= 1


# --- interruption ---------------------------------------------------------------------------------


def test_ctrl_c_says_so_when_slurm_does_not_answer(toy):
    shim(toy, "scancel", "exit 1")
    toy.write(training_rule())
    driver = toy.start()
    job = toy.await_training(1, driver)
    driver.await_that(lambda: any(each["job_id"] for each in toy.records()))
    driver.send_signal(signal.SIGINT)
    assert f"to cancel the jobs: scancel {job}" in driver.finish()
    toy.cluster.run("scancel", job)
    wait_for(lambda: toy.jobs()[job] == "CANCELLED")


def test_a_snakemake_that_cannot_be_interrupted_says_so_and_what_ends_it(toy):
    """As in the background of a script, whose children ignore SIGINT from their first line."""
    toy.write(training_rule())
    driver = toy.start_process(ignored=[signal.SIGINT])
    job = toy.await_training(1, driver)
    (line,) = [each for each in driver.said().splitlines() if "SIGINT is ignored" in each]
    assert f"kill -TERM {driver.process.pid}" in line and "Ctrl-C" in line
    driver.send_signal(signal.SIGINT)
    driver.send_signal(signal.SIGTERM)
    driver.await_that(lambda: "Will exit after finishing currently running jobs" in driver.said())
    toy.let_finish()
    driver.finish()
    assert toy.ended() == {job: "COMPLETED"}
