"""The classification task, through the interface of the training loop."""

import pytest
import torch

from smt.config.experiments import Run
from smt.datasets import manifest_writer
from smt.engine.distributed import Ranks
from smt.runs.paths import Layout
from smt.tasks.classify import Classification
from tests.helpers.imagefolders import recipe_of, write_images
from tests.helpers.params import project_at

RUN = Run(experiment="imagenet1k_smt_tiny", seed=0)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """The demo's smallest classifier on 16 images of 4 classes, one batch, with Mixup alone."""
    folder = tmp_path_factory.mktemp("classify")
    write_images(folder / "tiny" / "train", classes=4, per_class=4)
    write_images(folder / "tiny" / "val", classes=4, per_class=2, seed=1)
    project, plain = project_at("demo"), recipe_of(device_batch=16)
    augment = plain.augment.model_copy(update={"mixup": 0.8, "cutmix": 0.0, "mix_prob": 1.0})
    counts = {"classes": 4, "train_images": 16, "val_images": 8}
    dataset = project.datasets["imagenet1k"].model_copy(update={"root": "tiny", **counts})
    project = project.model_copy(
        update={
            "datasets": {**project.datasets, "imagenet1k": dataset},
            "recipes": {
                **project.recipes, "imagenet1k": plain.model_copy(update={"augment": augment})
            },
        }
    )  # fmt: skip
    layout = Layout("demo", results=folder / "results", data=folder)
    manifest_writer.write(project, layout, "imagenet1k")
    return Classification(project, layout, RUN, Ranks(0, 1, torch.device("cpu")), workers=0)


def test_evaluation_has_no_drop_path_and_restores_training_mode(task):
    assert task.model.training
    first = task.evaluate()
    assert task.model.training
    assert task.evaluate() == first and first.keys() == {"top1", "top5", "loss"}


def mixup_weights(task, epoch):
    """Return the Mixup weights of a batch, from its targets."""
    (batch,) = task.micro_batches(epoch, 0)
    targets = batch.loss_inputs[1]
    return {round(value, 5) for value in targets.unique().tolist()[1:-1]}


def test_mixup_differs_in_each_epoch(task):
    weights_by_epoch = [mixup_weights(task, epoch) for epoch in range(6)]
    assert all(weights_by_epoch) and mixup_weights(task, 0) == weights_by_epoch[0]
    assert len(set.union(*weights_by_epoch)) == sum(map(len, weights_by_epoch))
