"""Prediction intervals: arithmetic by hand, and the coverage that tables state by simulation."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from smt.report.notes import INTERVAL, explain_verdict
from smt.report.spread import COVERAGE, Spread, by_recipe, pooled, student_t
from smt.report.verdict import Summary, judge, summarise
from tests.helpers.params import project_at

DRAWS = 10_000
MEAN, STD = 82.2, 0.15
"""Of trainings that differ by chance alone."""
TINY, SMALL = "imagenet1k_smt_tiny", "imagenet1k_smt_small"


def test_pooled_by_hand():
    # Squares around the means 2 and 3: 1 + 1 and 1 + 1 + 4, of 1 + 2 degrees of freedom.
    spread = pooled({"a": [1.0, 3.0], "single": [7.0], "b": [2.0, 2.0, 5.0]})
    assert spread == Spread(pytest.approx(math.sqrt(8 / 3)), 3, ("a", "b"))


def test_the_width_by_hand():
    # Student's t of 3 degrees of freedom: 3.182; sqrt(1 + 1/3) and, of a single seed, sqrt(2).
    spread = Spread(0.2, 3, ("a",))
    assert spread.interval(3) == pytest.approx(3.182446 * 0.2 * 1.154701, rel=1e-6)
    assert spread.interval(1) == pytest.approx(3.182446 * 0.2 * 1.414214, rel=1e-6)


@pytest.mark.parametrize(("df", "printed"), [(1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042)])
def test_quantiles_are_those_of_printed_tables(df, printed):
    assert student_t(df, (1 - COVERAGE) / 2) == pytest.approx(printed, abs=5e-4)


def test_quantiles_are_scipys():
    for df in range(1, 100):
        assert student_t(df, (1 - COVERAGE) / 2) == pytest.approx(
            stats.t.ppf((1 + COVERAGE) / 2, df), abs=1e-8
        )


def test_without_several_seeds_of_anything_there_is_none():
    assert pooled({}) is None
    assert pooled({"a": [1.0], "b": [2.0]}) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_experiment_with_a_value_that_is_not_finite_is_left_out(value):
    assert pooled({"a": [1.0, value]}) is None
    assert pooled({"a": [1.0, value], "b": [1.0, 3.0]}).experiments == ("b",)


def test_equal_seeds_give_an_interval_of_width_zero():
    spread = pooled({"a": [82.0, 82.0]})
    assert (spread.std, spread.interval(2)) == (0.0, 0.0)
    verdict = judge(Summary(2, 82.0, 0.0), 82.5, spread, tolerance=0.2, comparable=True)
    assert verdict == "below"


def test_each_recipe_and_metric_is_pooled_for_itself():
    project = project_at("paper")
    large, detector = "imagenet1k_smt_large_224", "coco_retinanet_smt_small"
    found = by_recipe(
        project,
        {
            TINY: [{"top1": 82.0, "wall_seconds": 5.0}, {"top1": 82.4, "wall_seconds": 9.0}],
            SMALL: [{"top1": 83.0}, {"top1": 83.4}, {"top1": 83.8}],
            "imagenet1k_smt_base": [{"top1": 84.0}],
            large: [{"top1": 87.0}, {"top1": 89.0}],
            detector: [{"box_ap": 47.0}],
        },
    )
    assert found == {
        ("imagenet1k", "top1"): Spread(pytest.approx(math.sqrt(0.4 / 3)), 3, (TINY, SMALL)),
        ("imagenet22k_to_1k_224", "top1"): Spread(pytest.approx(math.sqrt(2)), 1, (large,)),
    }


# --- the coverage that is stated ------------------------------------------------------------------


def stated(text, pattern):
    """Return the number in 100 that a sentence below tables states."""
    return int(re.search(pattern, text)[1])


def false_verdicts(n, others, tolerance):
    """Return how many in 100 reported numbers are called below or above that are of our own kind.

    Each draw trains `n` seeds, those of the other experiments of the recipe, and what is reported.
    """
    random = np.random.default_rng(n + 10 * sum(others) + 1000 * len(others))
    wrong = 0
    for _ in range(DRAWS):
        own = random.normal(MEAN, STD, n).tolist()
        rest = {f"other{i}": random.normal(80 + i, STD, k).tolist() for i, k in enumerate(others)}
        verdict = judge(
            summarise(own), random.normal(MEAN, STD), pooled({"own": own, **rest}),
            tolerance=tolerance, comparable=True,
        )  # fmt: skip
        wrong += verdict in ("below", "above")
    return 100 * wrong / DRAWS


@pytest.mark.parametrize(
    ("n", "others"), [(2, ()), (3, ()), (5, ()), (3, (3, 3, 2)), (1, (2,)), (1, (3, 3))]
)
def test_as_many_verdicts_are_false_as_is_stated(n, others):
    outside = stated(explain_verdict("0"), r"at most (\d+) in 100")
    assert outside == 100 - stated(INTERVAL, r"(\d+) in 100 lie in it")
    assert false_verdicts(n, others, tolerance=0.0) == pytest.approx(outside, abs=0.5)


def test_with_a_tolerance_no_more_verdicts_are_false_than_is_stated():
    outside = stated(explain_verdict("0.2"), r"at most (\d+) in 100")
    assert false_verdicts(3, (3, 3), tolerance=0.2) < outside
