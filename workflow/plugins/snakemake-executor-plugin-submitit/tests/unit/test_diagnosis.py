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
