"""Outputs of an evaluation: files for test servers, and a sheet of sample images."""

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle
from PIL import Image

from smt.config.experiments import Run
from smt.data.ade20k import ADE20KSplit
from smt.datasets import manifest_writer
from smt.datasets.demo import digits, scenes
from smt.engine.distributed import Ranks
from smt.errors import UserError
from smt.evaluation import predictions, samples
from smt.evaluation.predictions import ImageResult
from smt.evaluation.writer import LabelMapWriter, write_detections
from smt.models import weights
from smt.runs.atomic import write_json
from smt.runs.paths import EvaluationOutputs, Layout
from smt.runs.record import RunMetrics
from smt.tasks import evaluation
from smt.tasks.build import build_task
from tests.unit.datasets.test_ade20k import ADE20K, CLASSES, SIZE, label_map
from tests.unit.datasets.test_coco import PROJECT, Coco

DOG, CAFE = 0, 1
"""Labels of the categories 3 and 7."""
SCALE = samples.TILE / 40
"""Of the one validation image, 40 x 40 pixels, with a café at 2, 3, of 10 x 10 pixels."""


@pytest.fixture
def outputs(tmp_path):
    return EvaluationOutputs(tmp_path / "run" / "samples.jpg", tmp_path / "run" / "predictions")


@pytest.fixture
def coco(tmp_path):
    return Coco(tmp_path).open("val")


@pytest.fixture
def ade20k(tmp_path):
    data = ADE20K(tmp_path)
    return ADE20KSplit(data.root, "val", data.manifest())


def result(score=0.9, box=(20.0, 22.0, 12.0, 8.0), mask=None):
    """Return one dog in the validation image."""
    masks = None if mask is None else (packed(mask),)
    return ImageResult(1, (40, 40), (box,), (score,), (3,), masks)


def packed(mask):
    (runs,) = rle.encode(np.asfortranarray(mask[:, :, None].astype(np.uint8)))
    return runs["counts"].decode()


def rows(sheet):
    """Return the two rows of a picture, (H, W, 3) uint8 each, without their captions."""
    pixels, row = np.asarray(sheet), samples._STRIP + samples.TILE + samples._GAP
    starts = samples._STRIP, samples._STRIP + row
    return [pixels[start : start + samples.TILE, : samples.TILE] for start in starts]


def at(tile, x, y):
    """Return the colour of a tile where a place of the image is."""
    return tuple(tile[round(y * SCALE), round(x * SCALE)].tolist())


# --- detectors ---------------------------------------------------------------------------------


def test_annotated_and_predicted_boxes_are_drawn_in_place(coco):
    annotated, predicted = rows(samples.detection_sheet(coco, [result()]))
    # At the left and lower edges, where no name covers them.
    assert at(annotated, 2, 8) == samples.colour(CAFE) == at(annotated, 6, 12.8)
    assert at(predicted, 20, 26) == samples.colour(DOG) == at(predicted, 26, 29.8)
    assert at(annotated, 20, 26) != samples.colour(DOG)
    assert at(predicted, 2, 8) != samples.colour(CAFE)
    # The inside stays as it is.
    assert at(annotated, 26, 26) == at(predicted, 26, 26)


def test_detections_below_the_minimum_score_are_not_drawn(coco):
    below = samples.detection_sheet(coco, [result(score=samples.MIN_SCORE - 0.01)])
    nothing = samples.detection_sheet(coco, [ImageResult(1, (40, 40), (), (), (), None)])
    assert below.tobytes() == nothing.tobytes()
    above = samples.detection_sheet(coco, [result(score=samples.MIN_SCORE)])
    assert above.tobytes() != nothing.tobytes()


def test_masks_are_blended_inside_their_boxes(coco):
    mask = np.zeros((40, 40), bool)
    mask[22:30, 20:26] = True
    annotated, predicted = rows(samples.detection_sheet(coco, [result(mask=mask)]))
    plain, _ = rows(samples.detection_sheet(coco, [result()]))
    assert at(predicted, 29, 26) == at(plain, 29, 26), "in the box and not in the mask"
    blended = np.add(at(plain, 23, 26), samples.colour(DOG)) / 2
    assert np.abs(np.subtract(at(predicted, 23, 26), blended)).max() <= 2
    assert at(annotated, 5, 10) != at(plain, 5, 10), "annotated masks are drawn as well"


def test_the_same_predictions_make_the_same_bytes(coco, tmp_path):
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg")]
    for path in paths:
        samples.write(path, samples.detection_sheet(coco, [result()]))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as sheet:
        assert (sheet.format, sheet.size) == ("JPEG", (samples.TILE, 566))


def test_sampled_images_have_objects_and_are_spread_over_the_split():
    assert samples.choose_images(600, lambda index: True) == [0, 100, 200, 300, 400, 500]
    assert samples.choose_images(60, lambda index: index % 4 == 3) == [3, 11, 23, 31, 43, 51]
    assert samples.choose_images(60, lambda index: index > 35) == [36, 40, 50]
    assert samples.choose_images(2, lambda index: True) == [0, 1]


def test_a_sample_sheet_without_images_has_the_width_of_one(coco):
    assert samples.sheet([], []).size[0] == samples.TILE


def test_predictions_replace_earlier_ones(coco, outputs):
    outputs.predictions.mkdir(parents=True)
    (outputs.predictions / "stale.json").write_text("[]")
    write_detections(outputs, coco, [result()], ("bbox",))
    assert [path.name for path in outputs.predictions.iterdir()] == ["detections_bbox.json"]
    assert predictions.read(outputs.predictions, {1: (40, 40)}, (3, 7)) == [result()]
    assert sorted(path.name for path in outputs.samples.parent.iterdir()) == [
        "predictions", "samples.jpg"
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written_is_one_line(coco, read_only_folder):
    outputs = EvaluationOutputs(read_only_folder / "samples.jpg", read_only_folder / "predictions")
    with pytest.raises(UserError) as error:
        write_detections(outputs, coco, [result()], ("bbox",))
    assert "\n" not in str(error.value) and str(read_only_folder) in str(error.value)


# --- segmenters --------------------------------------------------------------------------------


def test_label_maps_are_coloured_by_class_and_unlabelled_pixels_stay(ade20k):
    prediction = np.full(SIZE, 3, np.uint8)
    tile = np.asarray(samples.draw_label_map(ade20k.load_image(0), prediction, ade20k.classes))
    blank = np.full(SIZE, 255, np.uint8)
    plain = np.asarray(samples.draw_label_map(ade20k.load_image(0), blank, ade20k.classes))
    blended = plain.astype(float) / 2 + np.array(samples.colour(3)) / 2
    assert np.abs(tile[-4:, :20] - blended[-4:, :20]).max() <= 2
    assert np.array_equal(plain, np.asarray(samples._tile(ade20k.load_image(0))))


class TwoImages(ADE20K):
    """Two images for validation, with two classes each."""

    def __init__(self, folder):
        super().__init__(folder)
        for name in ("d", "e"):
            pixels = np.zeros((*SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(self.root / "images" / "validation" / f"{name}.jpg")
            labels = self.root / "annotations" / "validation" / f"{name}.png"
            Image.fromarray(label_map(1, 2)).save(labels)

    @property
    def project(self):
        project = super().project
        tiny = project.datasets["tiny"].model_copy(update={"val_images": 2})
        return project.model_copy(update={"datasets": {"tiny": tiny}})


def test_each_process_writes_its_label_maps_and_one_the_sample_sheet(tmp_path, outputs):
    data = TwoImages(tmp_path)
    split = ADE20KSplit(data.root, "val", data.manifest())
    (outputs.predictions.parent / ".predictions.tmp").mkdir(parents=True)
    (outputs.predictions.parent / ".predictions.tmp" / "left.png").write_bytes(b"")
    first, second = LabelMapWriter(outputs, split), LabelMapWriter(outputs, split)
    first.begin()
    second.add(1, np.full(SIZE, CLASSES - 1, np.uint8))
    first.add(0, np.zeros(SIZE, np.uint8))
    first.end([first.samples, second.samples])
    assert sorted(path.name for path in outputs.predictions.iterdir()) == ["d.png", "e.png"]
    for name, label in {"d.png": 1, "e.png": CLASSES}.items():
        with Image.open(outputs.predictions / name) as image:
            assert np.array_equal(np.asarray(image), np.full(SIZE, label))
    with Image.open(outputs.samples) as sheet:
        assert sheet.width == 2 * samples.TILE + samples._GAP


@pytest.mark.parametrize("name", ["building, edifice", "building;edifice", "building"])
def test_a_class_is_shown_by_its_first_synonym(name):
    """objectInfo150.txt has commas between them, the csv file of the same classes semicolons."""
    assert samples.first_synonym(name) == "building"


def test_neighbouring_classes_differ_in_colour():
    colours = np.array([samples.colour(label) for label in range(CLASSES)], int)
    assert len(np.unique(colours, axis=0)) == CLASSES
    distances = np.abs(np.diff(colours[:10], axis=0)).sum(1)
    assert distances.min() > 100


# --- an evaluation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "files"),
    [
        ("coco_mask_rcnn_1x_smt_small", ["detections_bbox.json", "detections_segm.json"]),
        ("ade20k_upernet_smt_small", ["scene_00000.png", "scene_00001.png"]),
    ],
)
def test_evaluate_writes_predictions_and_measure_does_not(tmp_path, experiment, files):
    layout, run = Layout("demo", tmp_path / "results", tmp_path), Run(experiment=experiment, seed=0)
    project = two_scenes(layout, PROJECT.dataset_of(experiment))
    ranks = Ranks(0, 1, torch.device("cpu"))
    task = build_task(project, layout, run, ranks, inherit=False)
    digest = weights.save(task.model.state_dict(), layout.weights(run), {})
    final = RunMetrics(
        experiment=experiment, seed=0, scale="demo", fingerprint="f" * 64,
        task=project.experiments[experiment].task, metrics=task.evaluate(), epochs=1, steps=1,
        images=1, weights_sha256=digest, wall_seconds=1.0, finished=0.0,
    )  # fmt: skip
    write_json(layout.metrics(run), final.as_json())

    assert evaluation.measure(project, layout, run, ranks) == final.metrics
    assert not layout.samples(run).exists() and not layout.predictions(run).exists()

    assert evaluation.evaluate(project, layout, run, ranks) == final.metrics
    assert layout.evaluation(run).exists()
    assert sorted(path.name for path in layout.predictions(run).iterdir()) == files
    with Image.open(layout.samples(run)) as sheet:
        assert sheet.size == (2 * samples.TILE + samples._GAP, 566)


def two_scenes(layout, name):
    """Make a data set of the demo, with two scenes for validation; return the project with it."""
    counts = {"train_images": 20, "val_images": 2}
    if name == "coco":
        counts["images_with_objects"] = 20
    dataset = PROJECT.datasets[name].model_copy(update=counts)
    write = scenes.write_coco if name == "coco" else scenes.write_ade20k
    write(layout.dataset_root(dataset), {"train": 20, "val": 2}, digits.mnist())
    project = PROJECT.model_copy(update={"datasets": {**PROJECT.datasets, name: dataset}})
    manifest_writer.write(project, layout, name)
    return project
