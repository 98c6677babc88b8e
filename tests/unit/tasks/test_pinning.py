"""Batches go from pinned memory to the device without a wait; pinning is a fake without a GPU."""

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from smt.config.experiments import Run
from smt.data.classification import TrainLoader
from smt.data.detection import detection_inputs, detection_loader
from smt.data.segmentation import segmentation_loader
from smt.engine.distributed import Ranks
from smt.evaluation import predictions
from smt.tasks.classify import Classification
from smt.tasks.detect import Detection
from smt.tasks.segment import Segmentation
from tests.helpers.imagefolders import open_folder, recipe_of, write_images
from tests.unit.data.test_segmentation import RECIPE as SEGMENTATION
from tests.unit.datasets.test_ade20k import ADE20K, PROJECT, ADE20KSplit
from tests.unit.datasets.test_coco import Coco

DETECTION = PROJECT.recipes["mask_rcnn_1x"].model_copy(
    update={"global_batch": 2, "device_batch": 2}
)
HERE = {"rank": 0, "world_size": 1, "workers": 0}


class FakePinnedMemory:
    """In place of page-locked memory: remembers tensors, and how they are copied to a device."""

    def __init__(self, monkeypatch, device):
        self.tensors, self.copies = {}, []
        to = torch.Tensor.to

        def pin(tensor):
            copy = tensor.clone()
            self.tensors[copy.data_ptr()] = copy  # held, so that no other has its address
            return copy

        def copy(tensor, *arguments, **options):
            if device in arguments:
                pinned = tensor.numel() == 0 or tensor.data_ptr() in self.tensors
                self.copies.append((pinned, options.get("non_blocking", False)))
            return to(tensor, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
        monkeypatch.setattr(torch.Tensor, "to", copy)

    def micro_batches(self, loader):
        """Yield what a loader with workers yields where there is a GPU."""
        for key, batch in loader.micro_batches(0):
            pinned = pin_memory(batch)
            assert type(pinned) is type(batch)
            yield key, pinned


class FakeLoader:
    """A loader whose batches are in the fake pinned memory."""

    def __init__(self, loader, memory):
        self.loader, self.memory = loader, memory

    def micro_batches(self, epoch, start_step):
        return self.memory.micro_batches(self.loader)

    def batches(self, epoch, start_step):
        return (batch for _, batch in self.micro_batches(epoch, start_step))


def task_on(kind, device, loader, memory):
    """Return a task with nothing but a loader and a device."""
    task = kind.__new__(kind)
    task._ranks, task._loader = Ranks(0, 1, device), FakeLoader(loader, memory)
    return task


@pytest.fixture
def device():
    """A device that is not the CPU, and needs no GPU."""
    return torch.device("meta")


@pytest.mark.parametrize(("masks", "parts"), [(True, 3), (False, 2)])
def test_batches_of_a_detector_are_copied_from_fake_pinned_memory(
    tmp_path, monkeypatch, device, masks, parts
):
    split = Coco(tmp_path).open(masks=masks)
    loader = detection_loader(split, DETECTION, masks=masks, seed=0, **HERE)
    memory = FakePinnedMemory(monkeypatch, device)
    batches = list(task_on(Detection, device, loader, memory).micro_batches(0, 0))
    images = sum(batch.images for batch in batches)
    assert memory.copies == [(True, True)] * (len(batches) + parts * images)
    for batch in batches:
        pixels, targets = batch.loss_inputs
        assert {pixels.device, *(target.boxes.device for target in targets)} == {device}


def test_a_pinned_batch_of_a_detector_is_the_same_batch(tmp_path, monkeypatch, device):
    split = Coco(tmp_path).open(masks=True)
    loader = detection_loader(split, DETECTION, masks=True, seed=0, **HERE)
    FakePinnedMemory(monkeypatch, device)
    for _, batch in loader.micro_batches(0):
        pinned = pin_memory(batch)
        assert torch.equal(pinned.images, batch.images)
        for image, sample, before in zip(pinned.images, pinned.samples, batch.samples, strict=True):
            assert sample.image.data_ptr() == image.data_ptr(), "a view, pinned once"
            assert sample.size == before.size
            for name in ("image", "boxes", "labels", "masks"):
                assert torch.equal(getattr(sample, name), getattr(before, name))


def test_an_image_to_be_evaluated_is_copied_from_fake_pinned_memory(tmp_path, monkeypatch, device):
    split = Coco(tmp_path).open("val")
    memory = FakePinnedMemory(monkeypatch, device)
    task = task_on(Detection, device, None, memory)
    task._val, task.recipe, task._threshold = split, DETECTION, 0.5
    copies = []
    task.model = type(
        "Model", (), {"predict": lambda self, images, sizes: [copies.append(images)]}
    )()
    monkeypatch.setattr(predictions, "image_result", lambda *arguments, **options: None)
    monkeypatch.setattr("smt.engine.optim.autocast", lambda *arguments: torch.no_grad())
    for index, detection_input in detection_inputs(split, DETECTION, **HERE):
        task._result(index, pin_memory(detection_input))
    assert memory.copies == [(True, True)]
    assert copies[0].device == device and copies[0].shape[2] % 32 == 0


def test_batches_of_a_segmenter_are_copied_from_fake_pinned_memory(tmp_path, monkeypatch, device):
    data = ADE20K(tmp_path)
    split = ADE20KSplit(data.root, "train", data.manifest())
    loader = segmentation_loader(split, SEGMENTATION, seed=0, **HERE)
    memory = FakePinnedMemory(monkeypatch, device)
    batches = list(task_on(Segmentation, device, loader, memory).micro_batches(0, 0))
    assert batches and memory.copies == [(True, True)] * (2 * len(batches))
    assert {part.device for batch in batches for part in batch.loss_inputs} == {device}


def test_batches_of_a_classifier_are_copied_from_fake_pinned_memory(tmp_path, monkeypatch, device):
    write_images(tmp_path / "tiny" / "train", classes=2, per_class=16)
    folder, recipe = open_folder(tmp_path / "tiny", "train", 2, 32), recipe_of()
    loader = TrainLoader(folder, recipe, seed=0, **HERE)
    memory = FakePinnedMemory(monkeypatch, device)
    task = task_on(Classification, device, loader, memory)
    task.recipe, task._classes, task._run = recipe, 2, Run(experiment="tiny", seed=0)
    batches = list(task.micro_batches(0, 0))
    assert memory.copies == [(True, True)] * (3 * len(batches)), "images, noise and labels"
    assert len(batches) == 8
    assert {part.device for batch in batches for part in batch.loss_inputs} == {device}
