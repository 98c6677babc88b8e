"""Jobs that fail for good: one line says why, where, and what to do. And SLURM that is away."""

import re
import signal
import stat
import time

import pytest

from tests.helpers.slurm import Cluster, Settings
from tests.helpers.toy_workflow import Toy, message, training_rule
from tests.helpers.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.xdist_group("cluster")


@pytest.fixture
def toy(tmp_path, cluster):
    return Toy(tmp_path / "toy", cluster)


def rule(command, **resources):
    given = {"mem_mb": 300, "runtime": 5, **resources}
    lines = "".join(f"        {key}={value!r},\n" for key, value in given.items())
    return f"rule r:\n    output: 'r.txt'\n    resources:\n{lines}    shell: {command!r}\n"


def shim(toy, program, script):
    """Put a program of this name before the real one, which the script may call as $REAL."""
    folder = toy.folder / "shims"
    folder.mkdir(exist_ok=True)
    path = folder / program
    path.write_text(f"#!/bin/bash\nREAL=/usr/bin/{program}\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    if str(folder) not in toy.environment["PATH"]:
        toy.environment["PATH"] = f"{folder}:{toy.environment['PATH']}"


# --- one line that explains -----------------------------------------------------------------------


def test_a_command_that_fails_shows_its_code_and_its_last_words(toy):
    toy.write(rule("echo one; echo 'recipe is wrong' >&2; exit 4"))
    line = toy.fail()
    assert re.match(r"job \d+: FAILED \(exit 4\); log /\S+_0_log.out: one \| recipe is wrong", line)
    assert toy.records() == []


def test_the_end_of_the_rules_own_log_is_shown(toy):
    toy.write(training_rule(steps=5).replace(".state 5", ".state five"))
    line = toy.fail()
    assert "logs/train.log: " in line and "invalid literal for int() with base 10: 'five'" in line


def test_out_of_memory(toy):
    toy.write(rule("python3 -c 'x = bytearray(900 * 2**20); import time; time.sleep(30)'"))
    line = toy.fail()
    assert "OUT_OF_MEMORY" in line and "raise mem_mb" in line
    assert "Exceeded job memory limit" in line
    assert len(toy.jobs()) == 1


def test_a_time_out_of_a_command_that_cannot_go_on(toy):
    toy.write(rule("echo begun; sleep 600", runtime=1))
    line = toy.fail(signal_delay=5)
    assert "TIMEOUT" in line and "raise runtime" in line and "begun" in line
    assert len(toy.jobs()) == 1


def test_cancelled_by_the_user(toy, cluster):
    toy.write(training_rule(steps=900))
    process = toy.start()
    job = toy.await_starts(1, process)
    cluster.run("scancel", job)
    said = toy.finish(process)
    assert process.returncode != 0
    assert f"job {job}: CANCELLED by " in message(said)
    assert "start Snakemake again to run it again" in message(said)
    assert list(toy.jobs()) == [job]


@pytest.mark.parametrize("resource", ["slurm_partition", "slurm_account"])
def test_a_wrong_name_is_refused_at_submission(toy, resource):
    toy.write(rule("touch {output}", **{resource: "nowhere"}))
    line = toy.fail()
    assert line.startswith("refused at submission: ")
    assert resource.removeprefix("slurm_") in line.lower()
    assert toy.records() == []
    assert not list((toy.folder / ".snakemake" / "submitit").glob("*.pkl"))


def test_more_gpus_than_any_node_has_are_refused(toy):
    toy.write(rule("touch {output}", gpus_per_node=64))
    assert "Requested node configuration is not available" in toy.fail()


def test_a_folder_that_a_node_does_not_see(toy):
    """SLURM cannot open the log there: here, because it is told of a folder that does not exist."""
    toy.write(rule("touch {output}"))
    shim(
        toy,
        "sbatch",
        'sed -i "s#^.SBATCH --output=.*#\\#SBATCH --output=/nowhere/%j.out#" "${@: -1}"\n'
        'exec $REAL "$@"',
    )
    line = toy.fail()
    assert re.search(r"job \d+ ended on n\d and left no trace in /\S+: does n\d see this", line)


def test_python_that_is_missing_on_the_node(toy):
    toy.write(rule("touch {output}"))
    line = toy.fail(python="/opt/nowhere/python")
    assert "never reached its first line" in line and "/opt/nowhere/python" in line


def test_a_misspelt_resource_is_named_before_anything_is_submitted(toy):
    toy.write(rule("touch {output}", slurm_partiton="gpu", mem_gb=4))
    code, said = toy.run()
    assert code != 0
    (line,) = [each for each in said.splitlines() if "unknown resource" in each]
    assert "slurm_partiton of rule r (meant: slurm_partition?)" in line
    assert "mem_gb of rule r (meant: mem_mb?)" in line
    assert "valid: runtime, mem_mb, " in line
    assert toy.jobs() == {}


def test_a_resource_of_the_users_own_is_no_mistake(toy):
    toy.write(rule("touch {output}", download_slots=1, gpu=1))
    toy.succeed("--resources", "download_slots=2", "gpu=4")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("signal_delay", 1), ("max_stalls", 0), ("poll_interval", 0)],
)
def test_a_setting_that_is_not_valid_is_named(toy, setting, value):
    toy.write(rule("touch {output}"))
    code, said = toy.run(**{setting: value})
    assert code != 0
    assert f"submitit-{setting.replace('_', '-')}" in said and "valid: " in said


# --- a SLURM that is away for a while -------------------------------------------------------------

AWAY = 'if [ -e "$(dirname "$0")/away" ]; then echo "{program}: error: {said}" >&2; exit 1; fi\n'


@pytest.mark.parametrize("program", ["sbatch", "squeue", "sacct", "scontrol", "scancel"])
def test_a_program_that_fails_for_a_while_only_delays(toy, program):
    said = "Unable to contact slurm controller (connect failure)"
    away = toy.folder / "shims" / "away"
    shim(toy, program, AWAY.format(program=program, said=said) + 'exec $REAL "$@"')
    away.touch()
    toy.write(training_rule(steps=60))
    process = toy.start()
    if program == "sbatch":
        toy.await_that(lambda: "is submitted later" in toy.output.read_text(), process)
        time.sleep(8)
    else:
        job = toy.await_starts(1, process)
        toy.cluster.run("scancel", "--batch", "--signal=USR2", job)
        time.sleep(8)
    away.unlink()
    toy.finish(process)
    assert process.returncode == 0
    assert len(toy.jobs()) == 1
    assert len(toy.starts()) == (1 if program == "sbatch" else 2)
    if program == "squeue":
        assert "SLURM does not answer; jobs go on" in toy.output.read_text()


def test_a_submission_whose_answer_was_lost_leaves_one_job(toy):
    """sbatch says that it timed out, and yet the job is in the queue."""
    toy.write(training_rule(steps=20))
    shim(
        toy,
        "sbatch",
        'if [ ! -e "$(dirname "$0")/lost" ]; then touch "$(dirname "$0")/lost"; $REAL "$@"'
        ' > /dev/null; echo "sbatch: error: Socket timed out on send/recv operation" >&2;'
        ' exit 1; fi\nexec $REAL "$@"',
    )
    toy.succeed()
    assert sorted(toy.jobs().values()) == ["CANCELLED", "COMPLETED"]
    assert len(toy.starts()) == 1


def test_a_controller_that_restarts_is_waited_for(toy, cluster):
    toy.write(training_rule(steps=80))
    process = toy.start()
    toy.await_starts(1, process)
    cluster.controller_down()
    time.sleep(5)
    cluster.controller_up()
    said = toy.finish(process)
    assert process.returncode == 0, said
    assert len(toy.starts()) == 1


def test_a_submission_that_is_never_answered_ends(toy):
    shim(toy, "sbatch", "echo 'sbatch: error: Socket timed out' >&2; exit 1")
    toy.write(rule("touch {output}"))
    line = toy.fail(submit_timeout=3)
    assert re.match(
        r"not submitted within \d+ s \(submitit-submit-timeout\): Socket timed out", line
    )


def test_a_job_that_is_held_is_named(toy, cluster):
    toy.write(training_rule(steps=20, slurm_extra="--hold"))
    process = toy.start()
    toy.await_that(lambda: "is held (JobHeldUser)" in toy.output.read_text(), process)
    (job,) = toy.jobs()
    assert f"to let it go on: scontrol release {job}" in toy.output.read_text()
    cluster.run("scontrol", "release", job)
    toy.finish(process)
    assert process.returncode == 0


def test_without_accounting(tmp_path, tmp_path_factory, cluster):
    """On a cluster of its own that has neither sacct's database nor any other."""
    with Cluster(tmp_path_factory.mktemp("plain"), Settings(accounting=False)) as plain:
        toy = Toy(tmp_path / "toy", plain)
        toy.write(training_rule(steps=900))
        process = toy.start()
        job = toy.await_starts(1, process)
        plain.run("scontrol", "requeue", job)
        toy.await_starts(2, process)
        plain.run("scancel", job)
        assert f"job {job}: CANCELLED" in message(toy.finish(process))
        toy.write(rule("touch {output}"))
        toy.succeed()


# --- what it costs the controller -----------------------------------------------------------------


def test_one_question_for_all_jobs(toy):
    calls = toy.folder / "calls"
    for program in ("squeue", "sacct", "scontrol"):
        shim(toy, program, f'echo {program} >> {calls}\nexec $REAL "$@"')
    toy.write(
        "rule all:\n    input: expand('{i}.txt', i=range(12))\n"
        + rule("sleep 6; touch {output}").replace("'r.txt'", "'{i}.txt'")
    )
    begun = time.monotonic()
    toy.succeed(status_interval=5)
    seconds = time.monotonic() - begun
    asked = calls.read_text().split() if calls.exists() else []
    assert set(asked) <= {"squeue"}
    assert len(asked) <= seconds / 5 + 1


def test_result_files_are_enough(toy):
    """No question at all is asked for jobs that end within the first interval."""
    calls = toy.folder / "calls"
    for program in ("squeue", "sacct", "scontrol"):
        shim(toy, program, f"echo {program} >> {calls}\nexit 1")
    toy.write(rule("touch {output}"))
    toy.succeed(status_interval=60)
    assert len(calls.read_text().split()) <= 1


# --- interruption ---------------------------------------------------------------------------------


def test_ctrl_c_says_so_when_slurm_does_not_answer(toy):
    shim(toy, "scancel", "exit 1")
    toy.write(training_rule(steps=900))
    process = toy.start()
    job = toy.await_starts(1, process)
    toy.await_that(lambda: any(each["job_id"] for each in toy.records()), process)
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE)
    assert f"to cancel the jobs: scancel {job}" in toy.output.read_text()
    toy.cluster.run("scancel", job)
    wait_for(lambda: toy.jobs()[job] == "CANCELLED")
