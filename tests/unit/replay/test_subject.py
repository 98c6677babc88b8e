"""Draws of stretches, and the probability that they have a forged one."""

from itertools import combinations
from math import comb

import pytest

from smt.replay.subject import detection_probability, select
from smt.runs.milestones import Milestone, stretches

TEN = stretches([Milestone(step, step) for step in range(1, 11)])


@pytest.mark.parametrize("forged", [1, 2])
@pytest.mark.parametrize("drawn", [1, 4, 10])
def test_the_probability_is_the_share_of_draws_that_have_a_forged_stretch(drawn, forged):
    hits = sum(any(each < forged for each in draw) for draw in combinations(range(10), drawn))
    assert detection_probability(10, drawn, forged) == pytest.approx(hits / comb(10, drawn))


def test_a_draw_has_so_many_stretches_each_once_in_order():
    drawn = select(TEN, "4", draw=1)
    assert drawn == select(TEN, "4", draw=1) != select(TEN, "4", draw=2)
    assert len(drawn) == 4 and drawn == sorted(set(drawn), key=lambda each: each.number)
    assert select(TEN, "all", draw=1) == select(TEN, "10", draw=2) == TEN
