"""Batches have the same bytes for any number of workers and ranks; damaged images."""

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
def image_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("images") / "tiny"
    write_images(root / "train", classes=4, per_class=IMAGES // 4)
    write_images(root / "val", classes=4, per_class=5, seed=1)
    return root


@pytest.fixture
def root(image_root, tmp_path):
    """A copy of the data set that a test may damage."""
    return shutil.copytree(image_root, tmp_path / "tiny")


def train_folder(root):
    return open_folder(root, "train", 4, IMAGES, 20)


def loader(root, *, seed=5, rank=0, world_size=1, workers=0, **changes):
    return TrainLoader(
        train_folder(root), recipe_of(**changes), seed=seed, rank=rank, world_size=world_size,
        workers=workers,
    )  # fmt: skip


def model_input(micro_batch):
    """Return the model's input: normalised images with random erasing."""
    return micro_batch.inputs(Normalise())


def as_bytes(batches):
    """Return micro-batches as {(step, number): (bytes of the model's input, labels)}."""
    return {
        (batch.step, batch.number): (model_input(batch).numpy().tobytes(), batch.labels.tolist())
        for batch in batches
    }


def micro_batches(root, **options):
    """Return the micro-batches of epoch 1."""
    return as_bytes(loader(root, **options).batches(1))


def paths_of(root, positions, epoch=1):
    """Return the files at `positions` of an epoch's order."""
    folder = train_folder(root)
    return [folder.samples[index][0] for index in epoch_order(IMAGES, 5, epoch)[positions]]


def test_shapes_types_and_labels_of_a_micro_batch(image_root):
    first = next(iter(loader(image_root).batches(0)))
    assert first.images.shape == (4, 3, 32, 32) and first.images.dtype == torch.uint8
    assert first.labels.shape == (4,) and first.labels.dtype == torch.int64
    inputs = model_input(first)
    assert inputs.shape == (4, 3, 32, 32) and inputs.dtype == torch.float32
    assert inputs.is_contiguous(memory_format=torch.channels_last) and -3 < inputs.mean() < 3
    order, folder = epoch_order(IMAGES, 5, 0), train_folder(image_root)
    assert first.labels.tolist() == [folder.samples[index][1] for index in order[:4]]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_read_the_same_bytes(image_root, workers):
    expected = micro_batches(image_root)
    random.seed(workers), np.random.seed(workers), torch.manual_seed(workers)
    assert micro_batches(image_root, workers=workers) == expected
    assert list(expected) == [(step, number) for step in range(3) for number in range(4)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_read_the_same_bytes(image_root, world_size):
    ranks = [
        micro_batches(image_root, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert sum(map(len, ranks)) == 12
    assert {key: value for batches in ranks for key, value in batches.items()} == micro_batches(
        image_root
    )


def augmented(root, epoch, *, seed=5, **changes):
    """Return the augmented images of an epoch by index."""
    batches = [model_input(batch) for batch in loader(root, seed=seed, **changes).batches(epoch)]
    return dict(zip(epoch_order(IMAGES, seed, epoch), torch.cat(batches), strict=False))


def test_augmentation_does_not_depend_on_the_micro_batch(image_root):
    one, other = augmented(image_root, 1, device_batch=16), augmented(image_root, 1)
    assert len(one) == 48 and all(torch.equal(one[image], other[image]) for image in one)


@pytest.mark.parametrize("other", [{"epoch": 2}, {"epoch": 1, "seed": 6}])
def test_augmentation_differs_between_epochs_and_seeds(image_root, other):
    one, other = augmented(image_root, 1), augmented(image_root, **other)
    both = one.keys() & other.keys()
    assert len(both) > 40 and not any(torch.equal(one[image], other[image]) for image in both)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_finished_steps_are_not_read(root, workers):
    expected = micro_batches(root)
    train = loader(root, workers=workers)
    for path in paths_of(root, slice(0, 32)):
        path.unlink()
    with pytest.raises(DataError, match="No such file"):
        next(train.batches(1))
    last = {key: value for key, value in expected.items() if key[0] == 2}
    assert as_bytes(train.batches(1, start_step=2)) == last


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_global_generators_unchanged(image_root, workers):
    def next_numbers():
        return random.random(), np.random.random(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = next_numbers()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    micro_batches(image_root, workers=workers)
    list(eval_batches(train_folder(image_root), recipe_of(), rank=0, world_size=1, workers=workers))
    assert next_numbers() == expected


def damage(path, damaged_file):
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "text": b"no image"}[damaged_file])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damaged_file", ["truncated", "text"])
def test_an_unreadable_image_is_an_error_of_one_line(root, damaged_file, workers):
    (path,) = paths_of(root, [20])
    damage(path, damaged_file)
    with pytest.raises(DataError) as error:
        micro_batches(root, workers=workers)
    message = str(error.value)
    assert message.startswith(f"cannot read image {path} (") and "\n" not in message
    assert "unreadable_images: skip" in message and "copy it again" in message


def test_an_unreadable_image_is_skipped_if_the_recipe_allows_it(root, caplog):
    expected = micro_batches(root)
    (path,) = paths_of(root, [20])
    damage(path, "truncated")
    epochs = []
    for workers in (0, 2):
        train = loader(root, workers=workers, unreadable_images="skip")
        with caplog.at_level(logging.WARNING):
            epochs.append([model_input(batch).numpy().tobytes() for batch in train.batches(1)])
        assert train.replaced == 1
        assert sum(f"cannot read image {path} (" in text for text in caplog.messages) == 1
        assert sum("takes its place in epoch 1" in text for text in caplog.messages) == 1
        caplog.clear()
    assert epochs[0] == epochs[1]
    changed = [
        position
        for position, (content, _) in enumerate(expected.values())
        if content != epochs[0][position]
    ]
    assert changed == [5]  # image 20 of the epoch is in micro-batch 5; the others are unchanged


def test_a_replacement_image_has_its_own_label(root):
    folder = train_folder(root)
    zeros = [path for path, label in folder.samples if label == 0]
    for path in zeros:
        damage(path, "text")
    labels = [
        label
        for _, batch_labels in micro_batches(root, unreadable_images="skip").values()
        for label in batch_labels
    ]
    assert len(labels) == 48 and 0 not in labels


def test_skipping_fails_if_no_replacement_is_readable(root):
    for path in paths_of(root, slice(0, IMAGES)):
        damage(path, "text")
    with pytest.raises(DataError, match=r"nor 10 others in its place; copy it again"):
        micro_batches(root, unreadable_images="skip")


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_every_image_once_for_any_number_of_ranks(image_root, workers):
    folder = open_folder(image_root, "val", 4, IMAGES, 20)

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

    single = evaluated(1)
    assert len({image for image, _ in single}) == 20
    assert sorted(label for _, label in single) == sorted([0, 1, 2, 3] * 5)
    assert evaluated(3) == single


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_always_fails_an_evaluation(root, workers):
    folder = open_folder(root, "val", 4, IMAGES, 20)
    damage(folder.samples[7][0], "truncated")
    recipe = recipe_of(unreadable_images="skip")
    with pytest.raises(DataError, match=r"cannot read image .*c1/002\.JPEG .* every image$"):
        list(eval_batches(folder, recipe, rank=0, world_size=1, workers=workers))


def test_killed_workers_are_replaced_and_no_image_is_lost(image_root, caplog):
    epoch = loader(image_root, workers=1).batches(1)
    batches = []
    for number, micro_batch in enumerate(epoch):
        batches.append(micro_batch)
        if number in (2, 6):
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
    assert as_bytes(batches) == micro_batches(image_root)
    assert sum("a process that reads images died" in text for text in caplog.messages) == 2
    assert "starting new ones, nothing is lost" in caplog.text


def test_repeatedly_dying_workers_are_an_error_of_one_line(image_root, monkeypatch):
    def fatal(path):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("smt.data.classification.decode", fatal)
    with pytest.raises(DataError, match=r"images died .*, 4 times in a row.*lower `workers`"):
        list(loader(image_root, workers=1).batches(0))
