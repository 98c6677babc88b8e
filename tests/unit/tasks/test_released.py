"""Released weights in this project's evaluation, against the release's rules read independently.

Independent are torchvision's reading of folders and its transforms, in the order of the release's
validation, and the model written straight from the paper's equations in benchmarks/plain.py.
"""

import csv
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor
from torchvision.transforms.functional import InterpolationMode

from smt.config.released import ReleasedWeights
from smt.engine.distributed import Ranks
from smt.errors import DataError, UserError
from smt.evaluation.top_k import interval
from smt.models import released as naming
from smt.models import weights, zoo
from smt.runs import released as record
from smt.runs.atomic import sha256
from smt.runs.paths import Layout
from smt.tasks.predict import predict
from smt.tasks.released import EvaluationStopped, evaluate, prepare
from tests.helpers import ROOT, golden_fill, released_files
from tests.helpers.params import project_at

SCALE = "smoke"
PROJECT = project_at(SCALE)
TINY = "imagenet1k_smt_tiny"
MODEL = PROJECT.models["smt_tiny"]
CLASSES, PER_CLASS = 10, 50
ALONE = Ranks(0, 1, torch.device("cpu"))
SETTINGS = ReleasedWeights(file=None, resolution=224)
"""As the release evaluates at 224: the demo's recipe has its crop, and another resolution."""


def released_state(model=MODEL, classes=CLASSES):
    """Return random weights of a model in the released form, by the rule of the golden values."""
    ours = zoo.skeleton(model, num_classes=classes).state_dict()
    shapes = {name: list(it.shape) for name, it in naming.to_released(ours).items()}
    filled = golden_fill.weights(shapes)
    return {n: it.float() if it.is_floating_point() else it for n, it in filled.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """500 photographs of noise in ImageNet's layout, of many sizes and shapes."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label in range(CLASSES):
        folder = root / "val" / f"n{label:08}"
        folder.mkdir(parents=True)
        for number in range(PER_CLASS):
            width, height = (int(side) for side in generator.integers(120, 400, 2))
            coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            image = coarse.resize((width, height), Image.Resampling.BICUBIC)
            if number % 10 == 0:
                image = image.convert("L")  # ImageNet has grey images
            image.save(folder / f"ILSVRC2012_val_{label:02}{number:06}.JPEG", quality=90)
    return root


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return released_files.write(tmp_path_factory.mktemp("weights") / "smt.pth", released_state())


@pytest.fixture(scope="module")
def independent(root):
    """Logits of each image by its name, as the release's rules give them, and its label."""
    spec = importlib.util.spec_from_file_location("plain", ROOT / "benchmarks" / "plain.py")
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    model = plain.PlainSMT(MODEL, CLASSES).eval()
    model.load_state_dict(released_state())
    size = int(256 / 224 * 224)
    transform = Compose(
        [
            Resize(size, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(),
            Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )  # fmt: skip
    folder = TorchvisionFolder(root / "val", transform)
    with torch.inference_mode():
        return {
            path.removeprefix(f"{root}/val/"): (model(folder[index][0][None])[0], label)
            for index, (path, label) in enumerate(folder.samples)
        }


def task_of(folder, file, root, **settings):
    data = SETTINGS.model_copy(update={"data": str(root), **settings})
    return prepare(PROJECT, Layout(SCALE, folder / "results", folder / "data"), TINY, file, data)


def evaluated(folder, file, root, stop=None, **settings):
    stop = stop or SimpleNamespace(requested=False, defer_signals=lambda: None)
    task = task_of(folder, file, root, **settings)
    return evaluate(task, PROJECT, ALONE, stop), task


def rows_of(task):
    with task.predictions.open() as lines:
        return list(csv.DictReader(lines))


def test_logits_and_predictions_are_those_of_the_release(tmp_path, file, root, independent):
    result, task = evaluated(tmp_path, file, root)
    task.network.eval().to(memory_format=torch.channels_last)
    logits = torch.cat(
        [it for it, _ in predict(task.network, task.images, task.recipe, ALONE, workers=0)]
    )
    names = [task.images.name(index) for index in range(len(task.images))]
    expected = torch.stack([independent[name][0] for name in names])
    assert len(names) == CLASSES * PER_CLASS and logits.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)

    rows = rows_of(task)
    assert sorted(row["image"] for row in rows) == sorted(independent)  # every image once
    for row in rows:
        own, label = independent[row["image"]]
        assert int(row["label"]) == label
        best = torch.tensor([int(one) for one in row["best"].split()])
        # Equal logits, as far as float32 tells them apart, may come in either order.
        torch.testing.assert_close(own[best], own.topk(5).values, rtol=1e-4, atol=1e-4)
        loss = torch.logsumexp(own.double(), 0) - own[label].double()
        assert float(row["loss"]) == pytest.approx(loss.item(), abs=1e-3)

    ranks = {name: int((own > own[label]).sum()) for name, (own, label) in independent.items()}
    for metric, k in (("top1", 1), ("top5", 5)):
        right = 100 * sum(rank < k for rank in ranks.values()) / len(ranks)
        assert result.metrics[metric] == pytest.approx(right, abs=0.2)  # one image
    assert (result.images, result.intervals) == (500, {})


def test_the_record_names_file_images_and_preprocessing(tmp_path, file, root):
    result, task = evaluated(tmp_path, file, root, images=32)
    assert record.read(task.layout, TINY) == result
    assert (result.weights.sha256, result.weights.state) == (sha256(file), "model")
    assert result.weights.recorded["epoch"] == 299
    assert result.predictions_sha256 == sha256(task.predictions)
    assert (result.data.images, result.data.expected, result.data.classes) == (500, 100, CLASSES)
    used = result.preprocessing
    assert (used.resolution, used.resize, used.crop_ratio) == (224, "crop", 0.875)


def test_an_estimate_has_its_interval_and_all_images_go_on_from_it(tmp_path, file, root):
    sample, task = evaluated(tmp_path, file, root, images=64, resolution=64)
    hits = {name: round(sample.metrics[name] * 64 / 100) for name in ("top1", "top5")}
    assert sample.intervals == {name: interval(count, 64) for name, count in hits.items()}
    assert sample.interval == "Wilson score, 95 %" and sample.is_estimate
    first = rows_of(task)
    assert len(first) == 64 and len({row["label"] for row in first}) == CLASSES  # not one class

    whole, _ = evaluated(tmp_path, file, root, resolution=64)
    rows = rows_of(task)
    assert rows[:64] == first and len(rows) == 500 and not whole.is_estimate
    again, _ = evaluated(tmp_path, file, root, images=64, resolution=64)
    assert again.metrics == whole.metrics  # what is done already counts


def test_what_was_interrupted_goes_on_to_the_same_predictions(tmp_path, file, root):
    class AfterTwoBatches:
        asked = 0

        def defer_signals(self):
            pass

        @property
        def requested(self):
            self.asked += 1
            return self.asked == 2

    with pytest.raises(EvaluationStopped, match="stopped after 32 of 500 images"):
        evaluated(tmp_path / "one", file, root, AfterTwoBatches(), resolution=32)
    assert record.read(task_of(tmp_path / "one", file, root).layout, TINY) is None
    resumed, task = evaluated(tmp_path / "one", file, root, resolution=32)
    undisturbed, other = evaluated(tmp_path / "two", file, root, resolution=32)
    assert task.predictions.read_bytes() == other.predictions.read_bytes()
    assert resumed.metrics == undisturbed.metrics


@pytest.mark.parametrize(
    "change", [{"preprocessing": "squash"}, {"preprocessing": "center_90"}, {"resolution": 32}]
)
def test_another_preprocessing_has_predictions_of_its_own(tmp_path, file, root, change):
    first = task_of(tmp_path, file, root, resolution=64)
    second = task_of(tmp_path, file, root, **{"resolution": 64, **change})
    assert first.predictions != second.predictions
    assert evaluated(tmp_path, file, root, images=32, **change)[0].images == 32


# --- the order of the classes ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Images of a colour a class, and weights that tell them apart: a head fitted to them."""
    root, generator = tmp_path_factory.mktemp("colours"), np.random.default_rng(1)
    palette = generator.integers(0, 256, (CLASSES, 3))
    for label, colour in enumerate(palette):
        (root / f"c{label}").mkdir()
        for number in range(20):
            pixels = np.clip(colour + generator.integers(-8, 9, (32, 32, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"c{label}" / f"{number:02}.png")
    file = released_files.write(tmp_path_factory.mktemp("w") / "smt.pth", released_state())
    task = task_of(tmp_path_factory.mktemp("fit"), file, root, resolution=32)
    network = task.network.eval()
    network.head = torch.nn.Identity()
    outputs = list(predict(network, task.images, task.recipe, ALONE, workers=0))
    features = torch.cat([it for it, _ in outputs])
    labels = torch.cat([it for _, it in outputs])
    mean, scale = features.mean(0), features.std(0) + 1e-6
    centres = torch.stack([features[labels == it].mean(0) for it in range(CLASSES)])
    state = released_state()
    # The nearest centre, in units of each feature's deviation: 2 c.x - c.c, which is linear.
    scaled = (centres - mean) / scale
    state["head.weight"] = 2 * scaled / scale
    state["head.bias"] = -(scaled**2).sum(1) - (2 * scaled / scale) @ mean
    return released_files.write(file.with_name("fitted.pth"), state), root


def order(folder, classes):
    path = folder / "labels.txt"
    path.write_text("".join(f"c{label}\n" for label in classes))
    return {"labels": str(path), "resolution": 32}


def test_folders_in_another_order_than_the_classes_are_an_error(tmp_path, colours):
    right, _ = evaluated(tmp_path, *colours, resolution=32)
    assert right.metrics["top1"] > 90
    written = record.read(task_of(tmp_path, *colours).layout, TINY)
    with pytest.raises(DataError) as error:
        evaluated(tmp_path, *colours, **order(tmp_path, [*range(1, CLASSES), 0]))
    message = str(error.value)
    assert "\n" not in message and "in another order than those of" in message
    assert "renumbered one to one" in message and "--labels" in message
    assert record.read(task_of(tmp_path, *colours).layout, TINY) == written  # it stays

    same, _ = evaluated(tmp_path, *colours, **order(tmp_path, range(CLASSES)))
    assert same.metrics["top1"] == right.metrics["top1"]
    assert same.data.labels == str(tmp_path / "labels.txt")


# --- bad input, before anything runs --------------------------------------------------------------


def refused(folder, file, root, **settings):
    with pytest.raises(UserError) as error:
        task_of(folder, file, root, **settings)
    message = str(error.value)
    assert "\n" not in message, message
    return message


def test_a_missing_file_is_one_line(tmp_path, root):
    assert "no released weights" in refused(tmp_path, tmp_path / "no.pth", root)


def test_a_file_of_another_variant_is_named(tmp_path, root):
    other = PROJECT.models["smt_base"]
    file = released_files.write(tmp_path / "base.pth", released_state(other))
    message = refused(tmp_path, file, root)
    assert f"are not of smt_tiny at scale {SCALE}: they are of smt_base" in message


def test_a_file_of_no_variant_names_its_tensors(tmp_path, root):
    state = {n: it for n, it in released_state().items() if n != "norm4.weight"}
    file = released_files.write(tmp_path / "cut.pth", state)
    assert "norm4.weight" in refused(tmp_path, file, root)


def test_a_file_of_other_classes_is_one_line(tmp_path, root):
    file = released_files.write(tmp_path / "22k.pth", released_state(classes=100))
    message = refused(tmp_path, file, root)
    assert "100 classes" in message and "--class-map" in message


def test_folders_of_fewer_classes_than_the_weights_are_one_line(tmp_path, file, root):
    small = tmp_path / "small"
    for folder in sorted((root / "val").iterdir())[:3]:
        (small / folder.name).mkdir(parents=True)
        (small / folder.name / "1.JPEG").write_bytes(b"x")
    message = refused(tmp_path, file, small)
    assert "has 10 classes" in message and "--labels" in message


@pytest.mark.parametrize(
    "others", [{}, {"rpn_head.rpn_conv.weight": 3}, {"decode_head.conv_seg.weight": 3}]
)
def test_a_file_of_detectors_is_one_line(tmp_path, root, others):
    trunk = {f"backbone.{n}": it for n, it in released_state().items() if n not in weights.HEAD}
    state = {**trunk, **{name: torch.zeros(size) for name, size in others.items()}}
    torch.save({"state_dict": state}, tmp_path / "detector.pth")
    message = refused(tmp_path, tmp_path / "detector.pth", root)
    assert "has no classifier (head.weight)" in message


def test_a_classifier_of_another_network_is_no_smt(tmp_path, root):
    shapes = {"conv1.weight": (8, 3, 7, 7), "layer1.0.conv1.weight": (8, 8), "fc.weight": (10, 8)}
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "it.pth")
    message = refused(tmp_path, tmp_path / "it.pth", root)
    assert "are no SMT's: their parts are conv1, layer1, fc;" in message


def test_an_unknown_preprocessing_is_one_line(tmp_path, file, root):
    message = refused(tmp_path, file, root, preprocessing="center90")
    assert "did you mean center_90" in message


@pytest.mark.parametrize(
    ("cut", "added", "words"),
    [
        (1, ["n99999999"], ["ImageNet-1K has not: n99999999", "lacks n01440764", "--labels"]),
        (0, ["zz_extra"], ["ImageNet-1K has not: zz_extra", "remove them"]),
        (10, [], ["lacks class folders", "n01440764, n01443537, n01484850 and 7 more", "--labels"]),
    ],
    ids=["another", "one more", "fewer"],
)
def test_synsets_that_are_not_those_of_imagenet_are_named(tmp_path, thousand, cut, added, words):
    from timm.data.imagenet_info import ImageNetInfo

    for name in (*ImageNetInfo("imagenet-1k").label_names()[cut:], *added):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "1.JPEG").write_bytes(b"x")
    message = refused(tmp_path, thousand, tmp_path)
    assert all(word in message for word in words), message


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """Weights of 1,000 classes."""
    path = tmp_path_factory.mktemp("thousand") / "smt.pth"
    return released_files.write(path, released_state(classes=1000))


def test_labels_of_fewer_classes_than_the_weights_are_named(tmp_path, file, root):
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"n{label:08}\n" for label in range(CLASSES + 2)))
    message = refused(tmp_path, file, root, labels=str(labels))
    assert "has 10 classes" in message and f"--labels {labels} names 12" in message
