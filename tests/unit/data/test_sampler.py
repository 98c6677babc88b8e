"""The order of images, and its micro-batches by rank."""

from itertools import pairwise

import numpy as np
import pytest

from smt.data.sampler import MicroBatchSampler, epoch_order, grouped_order, infinite_order
from smt.errors import UserError


def micro_batches(rank=0, world_size=1, start_step=0, epoch=0, images=100):
    return list(
        MicroBatchSampler(images, 32, 8, rank, world_size).micro_batches(7, epoch, start_step)
    )


def as_tuples(batches):
    return [(batch.step, batch.number, batch.indices.tolist()) for batch in batches]


def test_the_order_of_an_epoch_is_fixed():
    # If it changed, runs would silently train on images in another order.
    assert epoch_order(10, seed=0, epoch=0).tolist() == [9, 1, 2, 4, 0, 5, 7, 3, 8, 6]
    assert epoch_order(10, seed=1, epoch=0).tolist() == [5, 6, 8, 9, 1, 2, 7, 3, 4, 0]
    assert epoch_order(10, seed=0, epoch=1).tolist() == [5, 9, 8, 2, 1, 0, 6, 7, 3, 4]


def test_an_epoch_has_every_image_once():
    assert sorted(epoch_order(1001, seed=3, epoch=5)) == list(range(1001))


def test_global_batches_are_slices_of_the_order_without_the_remainder():
    order = epoch_order(100, seed=7, epoch=2)
    indices = np.concatenate([batch.indices for batch in micro_batches(epoch=2)])
    assert indices.tolist() == order[:96].tolist()
    assert [batch.step for batch in micro_batches()] == [0] * 4 + [1] * 4 + [2] * 4
    assert [batch.number for batch in micro_batches()] == [0, 1, 2, 3] * 3


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_same_micro_batches_for_any_world_size(world_size):
    ranks = [as_tuples(micro_batches(rank, world_size)) for rank in range(world_size)]
    assert sorted(batch for batches in ranks for batch in batches) == as_tuples(micro_batches())
    accumulation_steps = MicroBatchSampler(100, 32, 8, 0, world_size).accumulation_steps
    assert accumulation_steps * world_size == 4
    for rank, batches in enumerate(ranks):
        first = rank * accumulation_steps
        assert [batch for _, batch, _ in batches] == [*range(first, first + accumulation_steps)] * 3


def test_a_later_start_yields_the_remaining_steps():
    assert as_tuples(micro_batches(start_step=2)) == [
        batch for batch in as_tuples(micro_batches()) if batch[0] >= 2
    ]
    assert micro_batches(start_step=3) == []


def test_an_invalid_world_size_names_the_valid_ones():
    with pytest.raises(
        UserError, match=r"3 processes .* valid numbers of processes: 1, 2, 4 "
    ) as e:
        micro_batches(world_size=3)
    assert "\n" not in str(e.value)


def test_a_data_set_smaller_than_a_batch_is_refused():
    with pytest.raises(UserError, match=r"31 training images do not fill .* batch of 32"):
        micro_batches(images=31)


# --- detection: groups of aspect ratios; segmentation: an infinite order ------------------------

GROUPS = np.array([i % 3 == 0 for i in range(101)])  # 34 of one group, 67 of the other


def test_a_grouped_order_mixes_groups_only_in_the_remainder():
    order = grouped_order(GROUPS, 4, seed=3, epoch=1)
    assert sorted(order) == list(range(101))
    parts = [GROUPS[order[i : i + 4]] for i in range(0, 100, 4)]
    mixed = [part for part in parts if len(set(part)) > 1]
    # 34 = 8 x 4 + 2 and 67 = 16 x 4 + 3: 4 of the remaining 5 make one mixed part.
    assert len(parts) == 25 and len(mixed) == 1


def test_a_grouped_order_differs_between_epochs():
    orders = [grouped_order(GROUPS, 4, seed=3, epoch=epoch).tolist() for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    # Parts are in random order, not one group after the other.
    groups = [bool(GROUPS[orders[0][i]]) for i in range(0, 100, 4)]
    assert sum(a != b for a, b in pairwise(groups)) > 5


def test_micro_batches_are_of_one_group():
    sampler = MicroBatchSampler(101, 8, 4, 0, 1, groups=GROUPS)
    batches = list(sampler.micro_batches(3, 1))
    assert sampler.steps_per_epoch == 12 and len(batches) == 24
    assert sum(len(set(GROUPS[batch.indices])) > 1 for batch in batches) <= 1


def test_the_infinite_order_repeats_all_images():
    order = infinite_order(10, seed=5, start=0, count=35)
    for epoch in range(3):
        assert order[10 * epoch : 10 * (epoch + 1)].tolist() == epoch_order(10, 5, epoch).tolist()
    assert infinite_order(10, seed=5, start=17, count=9).tolist() == order[17:26].tolist()


def test_an_interval_counts_as_an_epoch_and_skips_no_image():
    sampler = MicroBatchSampler(10, 4, 2, 0, 1, interval=7)
    assert sampler.steps_per_epoch == 7
    indices = [
        index
        for epoch in (0, 1)
        for batch in sampler.micro_batches(5, epoch)
        for index in batch.indices
    ]
    assert indices == infinite_order(10, 5, 0, 56).tolist()


def test_ranks_share_the_infinite_order_of_a_single_rank():
    ranks = [
        as_tuples(MicroBatchSampler(10, 4, 2, rank, 2, interval=7).micro_batches(5, 1, 3))
        for rank in (0, 1)
    ]
    single = as_tuples(MicroBatchSampler(10, 4, 2, 0, 1, interval=7).micro_batches(5, 1, 3))
    assert sorted(ranks[0] + ranks[1]) == single
