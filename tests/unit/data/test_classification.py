"""Batches are the same bytes whoever reads them, and damaged images are dealt with as asked."""

import logging
import multiprocessing
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch

from smt.data.classification import TrainLoader, eval_batches
from smt.data.sampler import epoch_order
from smt.data.transforms.image import Normalise
from smt.errors import DataError
from tests.helpers.imagefolders import open_folder, recipe_of, write_images

IMAGES = 52  # 3 global batches of 16, and 4 images left out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("images") / "tiny"
    write_images(root / "train", classes=4, per_class=IMAGES // 4)
    write_images(root / "val", classes=4, per_class=5, seed=1)
    return root


@pytest.fixture
def root(made, tmp_path):
    """A data set of one's own to damage."""
    return shutil.copytree(made, tmp_path / "tiny")


def train_folder(root):
    return open_folder(root, "train", 4, IMAGES, 20)


def loader(root, *, seed=5, rank=0, world_size=1, workers=0, **changes):
    return TrainLoader(
        train_folder(root), recipe_of(**changes), seed=seed, rank=rank, world_size=world_size,
        workers=workers,
    )  # fmt: skip


def seen(micro_batch):
    """Return what the model sees: normalised images with the noise of what is erased."""
    return micro_batch.inputs(Normalise())


def as_bytes(micro_batches):
    """Return micro-batches as {(step, number): (bytes of what the model sees, labels)}."""
    return {
        (each.step, each.number): (seen(each).numpy().tobytes(), each.labels.tolist())
        for each in micro_batches
    }


def micro_batches(root, **how):
    """Return what epoch 1 yields."""
    return as_bytes(loader(root, **how).batches(1))


def paths_of(root, places, epoch=1):
    """Return the files that stand at those places of an epoch's order."""
    folder = train_folder(root)
    return [folder.samples[index][0] for index in epoch_order(IMAGES, 5, epoch)[places]]


def test_a_micro_batch_is_what_the_engine_expects(made):
    first = next(iter(loader(made).batches(0)))
    assert first.images.shape == (4, 3, 32, 32) and first.images.dtype == torch.uint8
    assert first.labels.shape == (4,) and first.labels.dtype == torch.int64
    inputs = seen(first)
    assert inputs.shape == (4, 3, 32, 32) and inputs.dtype == torch.float32
    assert inputs.is_contiguous(memory_format=torch.channels_last) and -3 < inputs.mean() < 3
    order, folder = epoch_order(IMAGES, 5, 0), train_folder(made)
    assert first.labels.tolist() == [folder.samples[index][1] for index in order[:4]]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_read_the_same_bytes(made, workers):
    expected = micro_batches(made)
    random.seed(workers), np.random.seed(workers), torch.manual_seed(workers)
    assert micro_batches(made, workers=workers) == expected
    assert list(expected) == [(step, number) for step in range(3) for number in range(4)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_read_the_same_bytes(made, world_size):
    shares = [micro_batches(made, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sum(map(len, shares)) == 12
    assert {key: value for share in shares for key, value in share.items()} == micro_batches(made)


def augmented(root, epoch, *, seed=5, **changes):
    """Return the augmented images of an epoch, by their numbers."""
    batches = [seen(each) for each in loader(root, seed=seed, **changes).batches(epoch)]
    return dict(zip(epoch_order(IMAGES, seed, epoch), torch.cat(batches), strict=False))


def test_augmentation_follows_the_image_not_its_place(made):
    """The same images in other micro-batches."""
    one, other = augmented(made, 1, device_batch=16), augmented(made, 1)
    assert len(one) == 48 and all(torch.equal(one[image], other[image]) for image in one)


@pytest.mark.parametrize("other", [{"epoch": 2}, {"epoch": 1, "seed": 6}])
def test_an_image_is_augmented_anew_in_each_epoch_and_for_each_seed(made, other):
    one, other = augmented(made, 1), augmented(made, **other)
    both = one.keys() & other.keys()
    assert len(both) > 40 and not any(torch.equal(one[image], other[image]) for image in both)


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_that_were_done_are_not_read_again(root, workers):
    expected = micro_batches(root)
    train = loader(root, workers=workers)
    for path in paths_of(root, slice(0, 32)):
        path.unlink()
    with pytest.raises(DataError, match="No such file"):
        next(train.batches(1))
    last = {key: value for key, value in expected.items() if key[0] == 2}
    assert as_bytes(train.batches(1, start_step=2)) == last


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_draws_nothing_from_the_global_generators(made, workers):
    def draws():
        return random.random(), np.random.random(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    micro_batches(made, workers=workers)
    list(eval_batches(train_folder(made), recipe_of(), rank=0, world_size=1, workers=workers))
    assert draws() == expected


def damage(path, how):
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"no image"}[how])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["cut", "text"])
def test_an_unreadable_image_stops_the_run_with_one_line(root, how, workers):
    (path,) = paths_of(root, [20])
    damage(path, how)
    with pytest.raises(DataError) as stopped:
        micro_batches(root, workers=workers)
    message = str(stopped.value)
    assert message.startswith(f"cannot read image {path} (") and "\n" not in message
    assert "unreadable_images: skip" in message and "copy it again" in message


def test_an_unreadable_image_is_skipped_where_the_recipe_says_so(root, caplog):
    expected = micro_batches(root)
    (path,) = paths_of(root, [20])
    damage(path, "cut")
    found = []
    for workers in (0, 2):
        train = loader(root, workers=workers, unreadable_images="skip")
        with caplog.at_level(logging.WARNING):
            found.append([seen(each).numpy().tobytes() for each in train.batches(1)])
        assert train.replaced == 1
        assert sum(f"cannot read image {path} (" in text for text in caplog.messages) == 1
        assert sum("takes its place in epoch 1" in text for text in caplog.messages) == 1
        caplog.clear()
    assert found[0] == found[1]
    other = [place for place, (a, _) in enumerate(expected.values()) if a != found[0][place]]
    assert other == [5]  # image 20 of the epoch is in micro-batch 5; no other changes


def test_the_image_that_takes_a_place_brings_its_label(root):
    folder = train_folder(root)
    zeros = [path for path, label in folder.samples if label == 0]
    for path in zeros:
        damage(path, "text")
    labels = [
        label
        for _, of_batch in micro_batches(root, unreadable_images="skip").values()
        for label in of_batch
    ]
    assert len(labels) == 48 and 0 not in labels


def test_skipping_does_not_hide_that_the_data_set_is_gone(root):
    for path in paths_of(root, slice(0, IMAGES)):
        damage(path, "text")
    with pytest.raises(DataError, match=r"nor 10 others in its place; copy it again"):
        micro_batches(root, unreadable_images="skip")


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_whatever_the_processes(made, workers):
    folder = open_folder(made, "val", 4, IMAGES, 20)

    def evaluated(world_size):
        batches = [
            batch
            for rank in range(world_size)
            for batch in eval_batches(
                folder, recipe_of(), rank=rank, world_size=world_size, workers=workers
            )
        ]
        assert max(len(labels) for _, labels in batches) <= 4
        images = [image.numpy().tobytes() for batch, _ in batches for image in batch]
        return sorted(zip(images, torch.cat([y for _, y in batches]).tolist(), strict=True))

    alone = evaluated(1)
    assert len({image for image, _ in alone}) == 20
    assert sorted(label for _, label in alone) == sorted([0, 1, 2, 3] * 5)
    assert evaluated(3) == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_always_stops_an_evaluation(root, workers):
    folder = open_folder(root, "val", 4, IMAGES, 20)
    damage(folder.samples[7][0], "cut")
    recipe = recipe_of(unreadable_images="skip")
    with pytest.raises(DataError, match=r"cannot read image .*c1/002\.JPEG .* every image$"):
        list(eval_batches(folder, recipe, rank=0, world_size=1, workers=workers))


def test_killed_workers_are_replaced_and_nothing_is_lost(made, caplog):
    epoch = loader(made, workers=1).batches(1)
    found = []
    for number, micro_batch in enumerate(epoch):
        found.append(micro_batch)
        if number in (2, 6):
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
    assert as_bytes(found) == micro_batches(made)
    assert sum("a process that reads images died" in text for text in caplog.messages) == 2
    assert "starting new ones, nothing is lost" in caplog.text


def test_workers_that_die_again_and_again_are_one_line(made, monkeypatch):
    def fatal(path):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("smt.data.classification.decode", fatal)
    with pytest.raises(DataError, match=r"images died .*, 4 times in a row.*lower `workers`"):
        list(loader(made, workers=1).batches(0))
