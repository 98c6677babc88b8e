"""Initial weights of a run: those that its parent exported, and no others."""

import pytest
import torch

from smt.config.experiments import Run, Start
from smt.datasets import manifest_writer
from smt.engine.distributed import Ranks
from smt.engine.preempt import StopRequest
from smt.errors import TrainingError
from smt.models import weights, zoo
from smt.tasks.classify import Classification
from smt.tasks.segment import Segmentation
from smt.tasks.training import Options, RunTraining
from tests.helpers.imagefolders import project_of, write_images
from tests.helpers.run_files import CHILD, PARENT, RunFiles
from tests.unit.datasets.test_ade20k import ADE20K, PROJECT

ONE = Ranks(0, 1, torch.device("cpu"))
TINY = Run(experiment="imagenet1k_smt_tiny", seed=0)
UPERNET = Run(experiment="ade20k_upernet_smt_small", seed=0)


def export(project, layout, run, classes):
    """Write weights of a run that differ from any initialisation; return them."""
    model = zoo.build(
        project.models[project.experiments[run.experiment].model],
        num_classes=classes, drop_path_rate=0.0,
    )  # fmt: skip
    state = {name: value + 1 for name, value in model.state_dict().items()}
    weights.save(state, layout.weights(run), {})
    return state


def test_a_classifier_starts_from_all_weights_of_its_parent(tmp_path):
    write_images(tmp_path / "tiny" / "train", classes=4, per_class=16)
    data = project_of(tmp_path / "tiny", 4, 64).datasets["tiny"]
    start = Start(experiment=TINY.experiment, class_map=None)
    child = PROJECT.experiments[TINY.experiment].model_copy(update={"start": start})
    project = PROJECT.model_copy(
        update={
            "datasets": {**PROJECT.datasets, "imagenet1k": data},
            "experiments": {**PROJECT.experiments, "child": child},
        }
    )
    layout = ADE20K(tmp_path / "other").layout
    manifest_writer.write(project, layout, "imagenet1k")
    exported = export(project, layout, TINY, 4)
    task = Classification(project, layout, Run(experiment="child", seed=0), ONE, workers=0)
    state = task.model.state_dict()
    assert state.keys() == exported.keys()
    assert all(torch.equal(state[name], exported[name]) for name in exported)


def test_a_segmenter_starts_from_the_backbone_of_a_classifier(tmp_path):
    data = ADE20K(tmp_path)
    dataset = data.project.datasets["tiny"]
    project = PROJECT.model_copy(update={"datasets": {**PROJECT.datasets, "ade20k": dataset}})
    manifest_writer.write(project, data.layout, "ade20k")
    parent = project.parent(UPERNET)
    exported = export(project, data.layout, parent, project.datasets["imagenet1k"].classes)
    task = Segmentation(project, data.layout, UPERNET, ONE, workers=0)
    state = task.model.backbone.state_dict()
    assert state.keys() == exported.keys() - set(weights.HEAD)
    assert all(torch.equal(state[name], exported[name]) for name in state)


def test_weights_that_the_parent_did_not_export_are_refused(tmp_path):
    files = RunFiles(tmp_path)
    parent, child = Run(experiment=PARENT, seed=0), Run(experiment=CHILD, seed=0)
    files.finish(parent)
    path = files.layout.weights(parent)
    training = RunTraining(files.project, files.layout, child, ONE)
    path.write_bytes(b"other weights")
    message = start_error(training)
    assert f"{child} starts from {path}, which is not the file that {parent} exported" in message
    assert f"run: smt train {PARENT} --seed 0" in message
    path.unlink()
    assert start_error(training) == message


def start_error(training):
    """Return the error with which a training does not start."""
    options = Options(checkpoint_seconds=60, checkpoint_steps=None, stall_seconds=60, workers=0)
    with pytest.raises(TrainingError) as error:
        training.train(StopRequest(), options)
    return str(error.value)
