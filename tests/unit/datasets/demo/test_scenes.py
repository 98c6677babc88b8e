"""Demo scenes: deterministic, and read back as composed from both layouts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO

from smt.data.ade20k import ADE20KSplit
from smt.data.coco import CocoSplit
from smt.datasets import manifest, scan
from smt.datasets.demo import mask_encoding, scenes
from smt.datasets.demo.digits import make, mnist
from smt.errors import DataError, UserError
from smt.runs.paths import Layout
from tests.helpers.in_process import smt
from tests.helpers.params import project_at
from tests.unit.datasets.demo.test_digits import contents, folder_options

pytestmark = pytest.mark.xdist_group("scenes")  # made once

PROJECT = project_at("demo")
KEYS = ("coco", "ade20k")
COUNTS = {"train": 600, "val": 150}


@pytest.fixture(scope="module")
def scene_data(tmp_path_factory):
    """Both data sets, made and verified by the real commands, and the output of these."""
    folder = tmp_path_factory.mktemp("scenes")
    options = folder_options(folder)
    outputs = {}
    for key in KEYS:
        for action, *action_options in (("make",), ("manifest",), ("verify", "--decode")):
            result = smt(*options, "data", action, key, *action_options, "--scale", "demo")
            assert result.returncode == 0, result.stderr
            outputs[action, key] = result.stdout
    return folder, outputs


def layout(scene_data):
    return Layout("demo", results=scene_data[0] / "results", data=scene_data[0] / "data")


def composed(split, number):
    return scenes.scene(split, number, mnist()[split])


def dataset(key, train=6, val=3):
    """Return params of fewer scenes."""
    counts = {"train_images": train, "val_images": val}
    if key == "coco":
        counts["images_with_objects"] = scenes.count_with_objects(train)
    return PROJECT.datasets[key].model_copy(update=counts)


def test_make_manifest_and_verify_report_the_scenes(scene_data):
    folder, outputs = scene_data
    for key, classes, files in (("coco", 10, 752), ("ade20k", 11, 1500)):
        description = f"600 train and 150 val images in {classes} classes"
        assert outputs["make", key] == f"{key}: made {folder}/data/demo/{key}, {description}\n"
        assert outputs["manifest", key].startswith(f"{key}: {description}, ")
        verified = outputs["verify", key]
        assert verified.startswith(f"ok     {key}: {description}, ")
        assert verified.endswith(f"every byte as its manifest says; {files} files read\n")
    assert "(1762 objects, 19 crowds, 18 empty images)" in outputs["manifest", "coco"]


def test_coco_annotations_equal_the_composed_scenes(scene_data):
    written = manifest.read(layout(scene_data), "coco")
    split = CocoSplit(scene_data[0] / "data" / "demo" / "coco", "val", written)
    assert split.classes == scenes.DIGITS and split.category_ids == scenes.CATEGORY_IDS
    for index in range(len(split)):
        scene = composed("val", index)
        objects = [object_ for object_ in scene.objects if not object_.is_crowd]
        annotation, masks = split.annotation(index), split.masks(index)
        assert annotation.labels.tolist() == [object_.digit for object_ in objects]
        assert len(masks) == len(objects) == len(annotation.boxes)
        for object_, box, mask in zip(objects, annotation.boxes, masks, strict=True):
            assert np.array_equal(mask, object_.mask)
            rows, columns = np.nonzero(object_.mask)
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == expected
        difference = np.abs(np.subtract(split.load_image(index), scene.pixels, dtype=float))
        assert difference.mean() < 4, "up to JPEG compression"


def test_coco_annotations_equal_those_of_pycocotools(scene_data):
    written = manifest.read(layout(scene_data), "coco")
    split = CocoSplit(scene_data[0] / "data" / "demo" / "coco", "train", written)
    coco = COCO(str(split.annotation_file))
    kinds = set()
    for index, image in enumerate(split.images):
        entries = coco.loadAnns(coco.getAnnIds([image.id], iscrowd=0))
        annotation, masks = split.annotation(index), split.masks(index)
        for entry, box, label, mask in zip(
            entries, annotation.boxes, annotation.labels, masks, strict=True
        ):
            x, y, width, height = entry["bbox"]
            assert box.tolist() == [x, y, x + width, y + height]
            assert split.category_ids[label] == entry["category_id"]
            assert np.array_equal(mask, coco.annToMask(entry)) and mask.sum() == entry["area"]
        kinds |= {(type(entry["segmentation"]), entry["iscrowd"]) for entry in entries}
        kinds |= {
            (type(entry["segmentation"]), 1)
            for entry in coco.loadAnns(coco.getAnnIds([image.id], iscrowd=1))
        }
    assert kinds == {(list, 0), (dict, 0), (dict, 1)}, "polygons, RLE, and crowds as RLE"
    assert len(split.trainable) == PROJECT.datasets["coco"].images_with_objects == 585


def test_ade20k_label_maps_equal_the_composed_scenes(scene_data):
    written = manifest.read(layout(scene_data), "ade20k")
    assert written.classes == (*scenes.DIGITS, "background")
    split = ADE20KSplit(scene_data[0] / "data" / "demo" / "ade20k", "val", written)
    for index in range(len(split)):
        objects = composed("val", index).objects
        # The photograph is unlabelled beside digits, and background without them.
        expected = np.full((128, 128), 255 if objects else 10)
        for object_ in objects:
            expected[object_.mask] = object_.digit
        assert np.array_equal(split.label_map(index), expected)


def test_both_layouts_have_the_same_images(scene_data):
    data = scene_data[0] / "data" / "demo"
    for split, folder in (("train", "training"), ("val", "validation")):
        assert contents(data / "coco" / f"{split}2017") == contents(
            data / "ade20k" / "images" / folder
        )


@pytest.mark.parametrize("split", ["train", "val"])
def test_scenes_have_one_to_four_digits_on_dark_photographs(split):
    sizes, darker = [], []
    for number in range(0, 120):
        scene = composed(split, number)
        digits = [object_ for object_ in scene.objects if not object_.is_crowd]
        crowds = [object_ for object_ in scene.objects if object_.is_crowd]
        assert len(digits) in ((0,) if number % 40 == 39 else range(1, 5))
        assert len(crowds) == (number % 40 == 20)
        coverage = sum(
            (object_.mask.astype(int) for object_ in scene.objects), np.zeros((128, 128))
        )
        assert coverage.max() <= 1
        assert scene.pixels.shape == (128, 128, 3)
        sizes += [np.ptp(np.nonzero(object_.mask)[0]) + 1 for object_ in digits[-1:]]
        for object_ in scene.objects:
            colours = scene.pixels[object_.mask].astype(float)
            assert colours.std(0).mean() < 20, "one colour"
        covered = coverage > 0
        bright = scene.pixels[covered].mean() if scene.objects else 255
        darker.append(scene.pixels[~covered].mean() < bright)
    assert all(darker), "bright digits on dark photographs, as in the classification data"
    # The last digit of a scene is not covered.
    assert min(sizes) >= 28 and max(sizes) <= 72 and max(sizes) - min(sizes) > 30


def test_a_digit_covers_at_most_two_fifths_of_another():
    digits = mnist()["train"]
    below = np.zeros((128, 128), bool)
    below[50:78, 50:78] = True
    covered = []
    for seed in range(300):
        placed = scenes._place_digit(
            np.random.RandomState(seed), digits, [scenes._PlacedDigit(0, below, int(below.sum()))]
        )
        if placed is not None:
            covered.append((placed.mask & below).sum() / below.sum())
    assert len(covered) > 250 and 0.2 < max(covered) <= 0.4
    assert np.mean(np.array(covered) == 0) > 0.5, "the position of least overlap is chosen"


def test_scenes_have_digits_of_their_own_split_only(tmp_path):
    digits = mnist()
    for split in ("train", "val"):
        folder = tmp_path / split
        scenes.write_coco(folder, {split: 5}, {split: digits[split]})
        assert len(list((folder / f"{split}2017").iterdir())) == 5
    train, val = composed("train", 3), composed("val", 3)
    assert not np.array_equal(train.pixels, val.pixels)


def test_polygons_and_rle_are_exact():
    rng = np.random.default_rng(0)
    with_polygons = 0
    for _ in range(1500):
        mask = rng.random(rng.integers(1, 9, 2)) < rng.choice([0.2, 0.5, 0.8, 1.0])
        height, width = mask.shape
        rle = {"size": [height, width], "counts": mask_encoding.run_lengths(mask)}
        decoded = reference.decode(reference.frPyObjects(rle, height, width))
        assert np.array_equal(decoded, mask)
        if polygons := mask_encoding.polygons(mask):
            with_polygons += 1
            compressed = reference.merge(reference.frPyObjects(polygons, height, width))
            assert np.array_equal(reference.decode(compressed), mask)
    assert with_polygons > 1000
    ring = np.pad(np.zeros((1, 1), bool), 1, constant_values=True)
    assert mask_encoding.polygons(ring) is None
    assert mask_encoding.polygons(~ring) == [[1, 1, 2, 1, 2, 2, 1, 2]]


@pytest.mark.parametrize("key", KEYS)
def test_fewer_scenes_are_the_first_ones_and_deterministic(scene_data, tmp_path, key):
    root = tmp_path / key
    assert make(key, dataset(key), root) is True
    all_files = contents(scene_data[0] / "data" / "demo" / key)
    images = {name: digest for name, digest in contents(root).items() if "scene_" in name}
    assert len(images) == (9 if key == "coco" else 18)
    assert images.items() <= all_files.items()
    assert make(key, dataset(key), root) is False
    before = contents(root)
    shutil.rmtree(root)
    assert make(key, dataset(key), root) is True and contents(root) == before
    # Another number of scenes is made again, as the folder has only scenes.
    assert make(key, dataset(key, train=5), root) is True
    assert len([name for name in contents(root) if "scene_" in name]) == (
        8 if key == "coco" else 16
    )


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("coco", "annotations/instances_val2017.json"), ("coco", "train2017/scene_00002.jpg"),
        ("ade20k", "annotations/training/scene_00001.png"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_incomplete_scenes_are_made_again(tmp_path, key, file, damage):
    root = tmp_path / key
    make(key, dataset(key), root)
    before, path = contents(root), root / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert make(key, dataset(key), root) is True
    assert contents(root) == before


@pytest.mark.parametrize(
    ("key", "file", "content"),
    [
        ("coco", "annotations/instances_train2017.json", '{"info":{"description":"COCO 2017"}}'),
        ("coco", "train2017/000000000009.jpg", "precious"),
        ("ade20k", "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName\n"),
        ("ade20k", "annotations/training/ADE_train_00000001.png", "precious"),
    ],
)
def test_the_real_data_set_is_never_replaced(tmp_path, key, file, content):
    path = tmp_path / key / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(DataError, match="holds files that are not of this data set, such as") as e:
        make(key, dataset(key), tmp_path / key)
    assert str(path) in str(e.value) and path.read_text() == content


@pytest.mark.parametrize(
    ("key", "change", "expected_error"),
    [
        ("coco", {"classes": 11}, "datasets.coco.classes is 11, but .* makes 10; set it to 10"),
        ("coco", {"layout": "ade20k"}, "coco.layout is ade20k, but .* makes coco; set it to coco"),
        ("coco", {"train_images": 80}, "images_with_objects is 585, but .* makes 78; set it to 78"),
        ("ade20k", {"classes": 10}, "datasets.ade20k.classes is 10, but .* makes 11"),
    ],
)  # fmt: skip
def test_params_that_do_not_match_the_scenes_are_refused(tmp_path, key, change, expected_error):
    with pytest.raises(UserError, match=expected_error):
        make(key, PROJECT.datasets[key].model_copy(update=change), tmp_path / key)
    assert not list(tmp_path.iterdir())


def test_photographs_come_with_the_package():
    """Nothing is downloaded: each is a file of the installed package."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    names = {path.stem.lower() for path in folder.iterdir()}
    files = {
        "cat": "chelsea",
        "immunohistochemistry": "ihc",
        "stereo_motorcycle": "motorcycle_left",
    }
    assert {files.get(name, name) for name in scenes._PHOTOGRAPHS} <= names
    for photograph in scenes.photographs():
        assert photograph.mode == "RGB" and min(photograph.size) >= 128
        assert np.asarray(photograph).std() > 10, "not a blank image"


def test_annotations_have_the_keys_of_coco(scene_data):
    root = scene_data[0] / "data" / "demo" / "coco"
    content = json.loads((root / scan.annotation_file("val")).read_text())
    assert [image["id"] for image in content["images"]] == list(range(1, 151))
    assert {tuple(sorted(entry)) for entry in content["annotations"]} == {
        ("area", "bbox", "category_id", "id", "image_id", "iscrowd", "segmentation")
    }
    with Image.open(root / "val2017" / content["images"][0]["file_name"]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 128))


def test_a_wide_digit_fits_a_scene():
    wide = np.zeros((28, 28), np.uint8)
    wide[12:15, 2:26] = 255
    assert scenes._ink(wide, 72).shape == (72, 128)
