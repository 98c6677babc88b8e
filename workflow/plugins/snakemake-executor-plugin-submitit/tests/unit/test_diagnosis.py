"""Messages about failed jobs, from their logs."""

from snakemake_executor_plugin_submitit import diagnosis
from snakemake_executor_plugin_submitit.slurm import Status

ATTEMPTS = """\
2026-11-29 10:00:00 submitit: attempt 1 on n1, job 7
resources: mem_mb=300
the first attempt stopped
2026-11-29 10:05:00 submitit: attempt 2 on n2, job 7
the second one never came to its rule
"""


def test_a_message_quotes_only_the_last_attempt(tmp_path):
    log = tmp_path / "7_0_log.out"
    log.write_text(ATTEMPTS)
    message = diagnosis.explain_failure("7", Status("FAILED", exit="1:0"), log)
    assert message.startswith("job 7: FAILED (exit 1:0); ")
    assert "the second one never came to its rule" in message and "the first attempt" not in message


def test_the_exit_code_is_that_of_the_command_or_its_signal(tmp_path):
    """Bash replaces itself by its last command, so that Snakemake sees that command's signal."""
    log = tmp_path / "7_0_log.out"
    for line, expected in (
        ("Command 'x' returned non-zero exit status 7.", "7"),
        ("Command 'x' returned non-zero exit status 134.", "134"),
        ("Command 'x' died with <Signals.SIGABRT: 6>.", "134"),
        ("Command 'x' died with <Signals.SIGKILL: 9>.", "137"),
        ("something else", None),
    ):
        log.write_text(f"submitit: attempt 1 on n1, job 7\n{line}\n")
        assert diagnosis.exit_code(log) == expected
