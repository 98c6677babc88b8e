"""The order of images, and which process runs which of them."""

from itertools import pairwise

import numpy as np
import pytest

from smt.data.sampler import MicroBatchSampler, epoch_order, grouped_order, infinite_order
from smt.errors import UserError


def micro_batches(rank=0, world_size=1, start_step=0, epoch=0, images=100):
    return list(
        MicroBatchSampler(images, 32, 8, rank, world_size).micro_batches(7, epoch, start_step)
    )


def flat(these):
    return [(batch.step, batch.number, batch.indices.tolist()) for batch in these]


def test_the_order_of_an_epoch_stays_what_it_is():
    # Were it to change, every run would silently be another one.
    assert epoch_order(10, seed=0, epoch=0).tolist() == [9, 1, 2, 4, 0, 5, 7, 3, 8, 6]
    assert epoch_order(10, seed=1, epoch=0).tolist() == [5, 6, 8, 9, 1, 2, 7, 3, 4, 0]
    assert epoch_order(10, seed=0, epoch=1).tolist() == [5, 9, 8, 2, 1, 0, 6, 7, 3, 4]


def test_an_epoch_has_every_image_once():
    assert sorted(epoch_order(1001, seed=3, epoch=5)) == list(range(1001))


def test_global_batches_are_slices_of_the_order_and_the_rest_is_left_out():
    order = epoch_order(100, seed=7, epoch=2)
    seen = np.concatenate([batch.indices for batch in micro_batches(epoch=2)])
    assert seen.tolist() == order[:96].tolist()
    assert [batch.step for batch in micro_batches()] == [0] * 4 + [1] * 4 + [2] * 4
    assert [batch.number for batch in micro_batches()] == [0, 1, 2, 3] * 3


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_the_same_micro_batchs_whatever_their_number(world_size):
    shares = [flat(micro_batches(rank, world_size)) for rank in range(world_size)]
    assert sorted(batch for share in shares for batch in share) == flat(micro_batches())
    accumulation_steps = MicroBatchSampler(100, 32, 8, 0, world_size).accumulation_steps
    assert accumulation_steps * world_size == 4
    for rank, share in enumerate(shares):
        first = rank * accumulation_steps
        assert [batch for _, batch, _ in share] == [*range(first, first + accumulation_steps)] * 3


def test_a_later_start_yields_the_same_steps():
    assert flat(micro_batches(start_step=2)) == [
        batch for batch in flat(micro_batches()) if batch[0] >= 2
    ]
    assert micro_batches(start_step=3) == []


def test_processes_that_cannot_share_a_batch_are_told_how_many_can():
    with pytest.raises(
        UserError, match=r"3 processes .* valid numbers of processes: 1, 2, 4 "
    ) as e:
        micro_batches(world_size=3)
    assert "\n" not in str(e.value)


def test_a_data_set_smaller_than_a_batch_is_refused():
    with pytest.raises(UserError, match=r"31 training images do not fill .* batch of 32"):
        micro_batches(images=31)


# --- detection: neighbours of a group; segmentation: an endless row -----------------------------

GROUPS = np.array([i % 3 == 0 for i in range(101)])  # 34 of one kind, 67 of the other


def test_a_grouped_order_has_every_image_once_and_mixes_only_what_is_left():
    order = grouped_order(GROUPS, 4, seed=3, epoch=1)
    assert sorted(order) == list(range(101))
    parts = [GROUPS[order[i : i + 4]] for i in range(0, 100, 4)]
    mixed = [part for part in parts if len(set(part)) > 1]
    # 34 = 8 x 4 + 2 and 67 = 16 x 4 + 3: of the 5 that are left, 4 make one part.
    assert len(parts) == 25 and len(mixed) == 1


def test_a_grouped_order_is_another_one_in_another_epoch():
    orders = [grouped_order(GROUPS, 4, seed=3, epoch=epoch).tolist() for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    # The parts come in random order, not one kind after the other.
    kinds = [bool(GROUPS[orders[0][i]]) for i in range(0, 100, 4)]
    assert sum(a != b for a, b in pairwise(kinds)) > 5


def test_a_schedule_of_groups_gives_micro_batchs_of_one_kind():
    schedule = MicroBatchSampler(101, 8, 4, 0, 1, groups=GROUPS)
    found = list(schedule.micro_batches(3, 1))
    assert schedule.steps_per_epoch == 12 and len(found) == 24
    assert sum(len(set(GROUPS[batch.indices])) > 1 for batch in found) <= 1


def test_a_row_goes_through_all_images_again_and_again():
    row = infinite_order(10, seed=5, start=0, count=35)
    for epoch in range(3):
        assert row[10 * epoch : 10 * (epoch + 1)].tolist() == epoch_order(10, 5, epoch).tolist()
    assert infinite_order(10, seed=5, start=17, count=9).tolist() == row[17:26].tolist()


def test_an_interval_counts_as_an_epoch_and_leaves_nothing_out():
    schedule = MicroBatchSampler(10, 4, 2, 0, 1, interval=7)
    assert schedule.steps_per_epoch == 7
    seen = [
        index
        for epoch in (0, 1)
        for batch in schedule.micro_batches(5, epoch)
        for index in batch.indices
    ]
    assert seen == infinite_order(10, 5, 0, 56).tolist()


def test_processes_share_an_endless_row_as_one_would_read_it():
    shares = [
        flat(MicroBatchSampler(10, 4, 2, rank, 2, interval=7).micro_batches(5, 1, 3))
        for rank in (0, 1)
    ]
    alone = flat(MicroBatchSampler(10, 4, 2, 0, 1, interval=7).micro_batches(5, 1, 3))
    assert sorted(shares[0] + shares[1]) == alone
