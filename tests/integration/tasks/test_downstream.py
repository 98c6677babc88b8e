"""Detection and segmentation runs as a user types them, on demo scenes and on tiny models."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file

from smt.config.load import load_project
from smt.datasets.demo import scenes
from smt.runs.atomic import sha256
from tests.helpers import ROOT
from tests.helpers.ranks import AS_FORKS
from tests.helpers.shrink import cut_down_scenes, keep
from tests.helpers.trainings import (
    TINY,
    edit_demo,
    metrics,
    one_line,
    outcome,
    provenance,
    run_dir,
    smt,
    work_dir,
)

pytestmark = pytest.mark.xdist_group("downstream")  # what they share is made once

PARENT = "imagenet1k_smt_small"
MASK_RCNN, RETINANET, UPERNET = RUNS = (
    "coco_mask_rcnn_1x_smt_small",
    "coco_retinanet_smt_small",
    "ade20k_upernet_smt_small",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of three small systems, with few scenes and digits, and no run yet."""
    folder = tmp_path_factory.mktemp("downstream")
    shutil.copytree(ROOT / "params", folder / "params")
    keep(folder / "params", RUNS)
    edit_demo(folder, _shrink)
    for key in ("imagenet1k", "coco", "ade20k"):
        smt(folder, "data", "make", key)
        smt(folder, "data", "manifest", key)
    return folder


def _shrink(demo):
    cut_down_scenes(demo)
    demo["datasets"]["imagenet1k"].update(train_images=320, val_images=100)
    demo["datasets"]["coco"].update(
        train_images=16, images_with_objects=scenes.count_with_objects(16)
    )
    demo["models"]["smt_tiny"].update(TINY)
    demo["models"]["smt_small"].update(depths=TINY["depths"])
    demo["recipes"]["imagenet1k"]["schedule"].update(epochs=1, warmup_epochs=0)
    demo["heads"]["mask_rcnn"].update(channels=16)
    demo["heads"]["mask_rcnn"]["test"].update(score=0.0)  # in so few steps all scores stay low
    demo["heads"]["retinanet"].update(channels=16)
    demo["heads"]["upernet"].update(channels=16)
    for name in ("mask_rcnn_1x", "retinanet_3x"):
        demo["detection_recipes"][name]["schedule"].update(epochs=2, milestones=[1])
    demo["detection_recipes"]["*"].update(device_batch=2)
    demo["detection_recipes"]["*"]["schedule"].update(warmup_steps=2)
    demo["segmentation_recipes"]["upernet_160k"].update(device_batch=2)
    demo["segmentation_recipes"]["upernet_160k"]["schedule"].update(
        steps=8, interval=4, warmup_steps=2
    )


@pytest.fixture(scope="module")
def trained(project):
    """The same project with its runs trained and evaluated, and the output of each evaluation."""
    smt(project, "train", PARENT)
    outputs = {}
    for name in RUNS:
        smt(project, "train", name, "--no-send")
        outputs[name] = smt(project, "evaluate", name).stdout
    return project, outputs


def evaluation(project, name):
    return json.loads((run_dir(project, name) / "evaluation.json").read_text())


def digests_of_outputs(project, name):
    """Return the digests of the files that an evaluation writes of its predictions."""
    folder = run_dir(project, name)
    files = [folder / "samples.jpg", *sorted((folder / "predictions").rglob("*.*"))]
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def test_a_run_needs_its_manifest_and_its_parents_weights(tmp_path, project):
    result = smt(project, "--results", str(tmp_path / "results"), "train", RETINANET, check=False)
    one_line(result, "coco has no manifest", "smt data manifest coco --scale demo")
    shutil.copytree(project / "results" / "demo" / "data", tmp_path / "results" / "demo" / "data")
    result = smt(project, "--results", str(tmp_path / "results"), "train", RETINANET, check=False)
    assert result.returncode == 4
    one_line(result, f"starts from {PARENT}-seed0", "has not been trained", f"smt train {PARENT}")


def test_evaluate_gives_every_metric_of_the_task(trained):
    project, outputs = trained
    params = load_project(project / "params", "demo")
    for name in RUNS:
        values = evaluation(project, name)["metrics"]
        assert set(values) == set(params.metrics_of(name)) - _unmeasurable(values)
        assert values == {key: metrics(project, name)["metrics"][key] for key in values}
        assert f"{name}-seed0: " in outputs[name] and "samples.jpg" in outputs[name]
        assert all(0 <= value <= 100 for value in values.values())


def _unmeasurable(values):
    """Return the metrics of object sizes that the few scenes do not have."""
    return {f"{kind}_{key}_large" for kind in ("box", "mask") for key in ("ap", "ar")} - set(values)


def test_the_provenance_names_the_run_of_the_initial_backbone(trained):
    project, _ = trained
    parent = metrics(project, PARENT)
    for name in RUNS:
        record = json.loads((work_dir(project, name) / "provenance.json").read_text())
        assert record["parent"] == {
            "experiment": PARENT,
            "seed": 0,
            "fingerprint": parent["fingerprint"],
            "weights_sha256": parent["weights_sha256"],
        }
        assert record["params"]["head"]["kind"] in ("two_stage", "retinanet", "upernet")


def test_an_evaluation_does_not_depend_on_the_number_of_processes(trained):
    project, _ = trained
    for name in RUNS:
        expected, files = evaluation(project, name)["metrics"], digests_of_outputs(project, name)
        (run_dir(project, name) / "evaluation.json").unlink()
        smt(project, "evaluate", name, ranks=2)
        assert evaluation(project, name)["metrics"] == expected
        assert digests_of_outputs(project, name) == files
        assert not list(run_dir(project, name).glob(".*")), "no temporary files are left"


def test_files_for_cocos_server_give_the_metrics_by_pycocotools(trained):
    project, _ = trained
    expected = evaluation(project, MASK_RCNN)["metrics"]
    folder = run_dir(project, MASK_RCNN) / "predictions"
    truth_file = project / "data/demo/coco/annotations/instances_val2017.json"
    assert len(list(folder.iterdir())) == 2
    for kind, prefix in (("bbox", "box"), ("segm", "mask")):
        (path,) = folder.glob(f"*{kind}*.json")
        entries = json.loads(path.read_text())
        assert len(entries) > 9
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(truth_file)
            evaluator = COCOeval(truth, truth.loadRes(entries), kind)
            evaluator.evaluate(), evaluator.accumulate(), evaluator.summarize()
        assert expected[f"{prefix}_ap"] == pytest.approx(100 * evaluator.stats[0], abs=1e-9)
        assert expected[f"{prefix}_ap50"] == pytest.approx(100 * evaluator.stats[1], abs=1e-9)
        assert expected[f"{prefix}_ar100"] == pytest.approx(100 * evaluator.stats[8], abs=1e-9)


def test_files_for_ade20ks_server_give_the_metrics(trained):
    project, _ = trained
    expected = evaluation(project, UPERNET)["metrics"]
    folder = run_dir(project, UPERNET) / "predictions"
    truths = sorted((project / "data/demo/ade20k/annotations/validation").iterdir())
    assert [path.name for path in sorted(folder.iterdir())] == [path.name for path in truths]
    intersection, union, correct, pixels = (np.zeros(12, int) for _ in range(4))
    for path in truths:
        truth, predicted = (np.asarray(Image.open(file)) for file in (path, folder / path.name))
        assert predicted.min() >= 1 and predicted.max() <= 11
        predicted = predicted[truth > 0]
        truth = truth[truth > 0]
        for label in range(1, 12):
            intersection[label] += (hit := ((truth == label) & (predicted == label)).sum())
            union[label] += ((truth == label) | (predicted == label)).sum()
            correct[label] += hit
            pixels[label] += (truth == label).sum()
    present = union > 0
    assert expected["miou"] == pytest.approx(
        100 * (intersection[present] / union[present]).mean(), abs=1e-9
    )
    assert expected["pixel_accuracy"] == pytest.approx(100 * correct.sum() / pixels.sum(), abs=1e-9)
    present = pixels > 0
    assert expected["mean_accuracy"] == pytest.approx(
        100 * (correct[present] / pixels[present]).mean()
    )


def test_the_sample_sheet_is_a_jpeg_of_two_rows(trained):
    project, _ = trained
    for name in RUNS:
        with Image.open(run_dir(project, name) / "samples.jpg") as picture:
            picture.load()
            assert picture.format == "JPEG" and picture.width > picture.height > 400


def test_training_changes_the_weights_of_the_backbone(trained):
    project, _ = trained
    parent = load_file(run_dir(project, PARENT) / "model.safetensors")
    for name in RUNS:
        tensors = load_file(run_dir(project, name) / "model.safetensors")
        shared = {key for key in tensors if key.removeprefix("backbone.") in parent}
        assert shared and len(shared) < len(tensors)
        moved = [
            not torch.equal(tensors[key], parent[key.removeprefix("backbone.")]) for key in shared
        ]
        assert sum(moved) > 0.9 * len(moved)


def test_fewer_processes_are_a_recorded_deviation_of_heads_with_sync_norm(trained):
    project, _ = trained
    log = (work_dir(project, UPERNET) / "train.log").read_text()
    (sentence,) = metrics(project, UPERNET)["deviations"]
    assert "on 1 GPU instead of 4, the head's synchronised BatchNorm" in sentence
    assert sentence in log
    assert sentence == provenance(project, UPERNET)["attempts"][0]["deviation"]
    for name in (MASK_RCNN, RETINANET, PARENT):
        assert "deviations" not in metrics(project, name)


@pytest.mark.parametrize("name", [MASK_RCNN, UPERNET])
def test_recomputation_gives_the_same_bytes(trained, name):
    project, _ = trained
    plain = outcome(project, name)
    file = "detection.yaml" if name == MASK_RCNN else "segmentation.yaml"
    path, aside = project / "params" / file, run_dir(project, name).with_name("aside")
    original = path.read_text()
    run_dir(project, name).rename(aside)
    path.write_text(original.replace("recompute: false", "recompute: true"))
    try:
        smt(project, "train", name, "--no-send")
        assert outcome(project, name) == plain
        assert provenance(project, name)["attempts"][0]["recompute"]
    finally:
        path.write_text(original)
        shutil.rmtree(run_dir(project, name), ignore_errors=True)
        aside.rename(run_dir(project, name))


@pytest.mark.parametrize(("name", "ranks"), [(MASK_RCNN, 2), (UPERNET, 1)])
def test_killed_and_resumed_it_ends_with_the_same_bytes(trained, name, ranks):
    project, _ = trained
    options = ("--kills", "3", "--ranks", str(ranks), "--tables", "never")
    result = smt(project, "prove", name, *options, prepare=AS_FORKS)
    assert "equal to the byte" in result.stdout + result.stderr
    record = json.loads(
        (project / f"results/demo/proof/{name}-seed0-ranks{ranks}.json").read_text()
    )
    assert any(kill["ends"] for kill in record["kills"])
