"""What is said of a job that failed, from its log."""

from snakemake_executor_plugin_submitit import diagnosis
from snakemake_executor_plugin_submitit.slurm import Status

ATTEMPTS = """\
2026-11-29 10:00:00 submitit: attempt 1 on n1, job 7
resources: mem_mb=300
the first attempt stopped
2026-11-29 10:05:00 submitit: attempt 2 on n2, job 7
the second one never came to its rule
"""


def test_the_words_of_the_last_attempt_alone_are_shown(tmp_path):
    log = tmp_path / "7_0_log.out"
    log.write_text(ATTEMPTS)
    said = diagnosis.explain("7", Status("FAILED", exit="1:0"), log)
    assert said.startswith("job 7: FAILED (exit 1:0); ")
    assert "the second one never came to its rule" in said and "the first attempt" not in said


def test_the_exit_code_is_that_of_the_command_which_a_signal_may_have_ended(tmp_path):
    """A shell that runs nothing after it becomes the command, and has no code of its own then."""
    log = tmp_path / "7_0_log.out"
    for said, expected in (
        ("Command 'x' returned non-zero exit status 7.", "7"),
        ("Command 'x' returned non-zero exit status 134.", "134"),
        ("Command 'x' died with <Signals.SIGABRT: 6>.", "134"),
        ("Command 'x' died with <Signals.SIGKILL: 9>.", "137"),
        ("something else", None),
    ):
        log.write_text(f"submitit: attempt 1 on n1, job 7\n{said}\n")
        assert diagnosis.exit_code(log) == expected
