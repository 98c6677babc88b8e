"""The time that Snakemake's trainings still take, as `--logger runs` prints it."""

from snakemake_logger_plugin_runs.timing import TimeLeft


def test_jobs_last_as_long_as_those_of_their_rule():
    left = TimeLeft({"pretrain": 3, "detect": 2}, started=100.0)
    assert left.seconds(101.0) is None
    left.add_finished("pretrain", 10.0)
    left.add_finished("pretrain", 20.0)
    left.add_finished("detect", 60.0)
    one_by_one = 190.0
    assert left.seconds(one_by_one) == 15 + 60
    two_at_a_time = 145.0
    assert left.seconds(two_at_a_time) == (15 + 60) / 2


def test_jobs_of_a_rule_of_which_none_has_ended_last_as_long_as_the_mean():
    left = TimeLeft({"pretrain": 4, "detect": 1, "ablation": 2}, started=0.0)
    for _ in range(3):
        left.add_finished("pretrain", 10.0)
    left.add_finished("detect", 50.0)
    assert left.seconds(80.0) == 10 + 2 * 20


def test_nothing_is_left_of_a_rule_that_ends_more_jobs_than_were_announced():
    left = TimeLeft({"pretrain": 1}, started=0.0)
    left.add_finished("pretrain", 10.0)
    left.add_finished("pretrain", 10.0)
    assert left.seconds(20.0) == 0
