"""Demo scenes: the same bytes each time, and read back what was composed, in both forms."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO

from smt.config.load import load_project
from smt.data.ade20k import ADE20KSplit
from smt.data.coco import CocoSplit
from smt.datasets import manifest, scan
from smt.datasets.demo import mask_encoding, scenes
from smt.datasets.demo.digits import make, mnist
from smt.errors import DataError, UserError
from smt.runs.paths import Layout
from tests.helpers import ROOT
from tests.helpers.in_process import smt
from tests.unit.datasets.demo.test_digits import contents, places_in

PROJECT = load_project(ROOT / "params", "demo")
KEYS = ("coco", "ade20k")
COUNTS = {"train": 600, "val": 150}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both data sets, made, written down and verified by the real commands; and what they said."""
    folder = tmp_path_factory.mktemp("scenes")
    places = places_in(folder)
    said = {}
    for key in KEYS:
        for action, *options in (("make",), ("manifest",), ("verify", "--decode")):
            done = smt(*places, "data", action, key, *options, "--scale", "demo")
            assert done.returncode == 0, done.stderr
            said[action, key] = done.stdout
    return folder, said


def layout(made):
    return Layout("demo", results=made[0] / "results", data=made[0] / "data")


def composed(split, number):
    return scenes.scene(split, number, mnist()[split])


def dataset(key, train=6, val=3):
    """Return params of fewer scenes."""
    counts = {"train_images": train, "val_images": val}
    if key == "coco":
        counts["images_with_objects"] = scenes.count_with_objects(train)
    return PROJECT.datasets[key].model_copy(update=counts)


def test_the_commands_make_scenes_write_them_down_and_find_them_whole(made):
    folder, said = made
    for key, classes, files in (("coco", 10, 752), ("ade20k", 11, 1500)):
        what = f"600 train and 150 val images in {classes} classes"
        assert said["make", key] == f"{key}: made {folder}/data/demo/{key}, {what}\n"
        assert said["manifest", key].startswith(f"{key}: {what}, ")
        verified = said["verify", key]
        assert verified.startswith(f"ok     {key}: {what}, ")
        assert verified.endswith(f"every byte as its manifest says; {files} files read\n")
    assert "(1762 objects, 19 crowds, 18 empty images)" in said["manifest", "coco"]


def test_what_coco_reads_is_what_was_composed(made):
    found = manifest.read(layout(made), "coco")
    split = CocoSplit(made[0] / "data" / "demo" / "coco", "val", found)
    assert split.classes == scenes.DIGITS and split.category_ids == scenes.CATEGORY_IDS
    for index in range(len(split)):
        scene = composed("val", index)
        objects = [object_ for object_ in scene.objects if not object_.is_crowd]
        read, masks = split.annotation(index), split.masks(index)
        assert read.labels.tolist() == [object_.digit for object_ in objects]
        assert len(masks) == len(objects) == len(read.boxes)
        for object_, box, mask in zip(objects, read.boxes, masks, strict=True):
            assert np.array_equal(mask, object_.mask)
            rows, columns = np.nonzero(object_.mask)
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == expected
        difference = np.abs(np.subtract(split.load_image(index), scene.pixels, dtype=float))
        assert difference.mean() < 4, "but for the loss of JPEG"


def test_what_coco_reads_is_what_pycocotools_reads(made):
    found = manifest.read(layout(made), "coco")
    split = CocoSplit(made[0] / "data" / "demo" / "coco", "train", found)
    there = COCO(str(split.annotation_file))
    kinds = set()
    for index, image in enumerate(split.images):
        entries = there.loadAnns(there.getAnnIds([image.id], iscrowd=0))
        read, masks = split.annotation(index), split.masks(index)
        for entry, box, label, mask in zip(entries, read.boxes, read.labels, masks, strict=True):
            x, y, width, height = entry["bbox"]
            assert box.tolist() == [x, y, x + width, y + height]
            assert split.category_ids[label] == entry["category_id"]
            assert np.array_equal(mask, there.annToMask(entry)) and mask.sum() == entry["area"]
        kinds |= {(type(each["segmentation"]), each["iscrowd"]) for each in entries}
        kinds |= {
            (type(each["segmentation"]), 1)
            for each in there.loadAnns(there.getAnnIds([image.id], iscrowd=1))
        }
    assert kinds == {(list, 0), (dict, 0), (dict, 1)}, "polygons, runs, and crowds of runs"
    assert len(split.trainable) == PROJECT.datasets["coco"].images_with_objects == 585


def test_what_ade20k_reads_is_what_was_composed(made):
    found = manifest.read(layout(made), "ade20k")
    assert found.classes == (*scenes.DIGITS, "background")
    split = ADE20KSplit(made[0] / "data" / "demo" / "ade20k", "val", found)
    for index in range(len(split)):
        objects = composed("val", index).objects
        # Beside digits a photograph has no label; alone, it is background.
        expected = np.full((128, 128), 255 if objects else 10)
        for object_ in objects:
            expected[object_.mask] = object_.digit
        assert np.array_equal(split.label_map(index), expected)


def test_both_forms_are_of_the_same_pictures(made):
    data = made[0] / "data" / "demo"
    for split, folder in (("train", "training"), ("val", "validation")):
        assert contents(data / "coco" / f"{split}2017") == contents(
            data / "ade20k" / "images" / folder
        )


@pytest.mark.parametrize("split", ["train", "val"])
def test_scenes_hold_one_to_four_digits_of_which_most_is_visible(split):
    sizes, darker = [], []
    for number in range(0, 120):
        scene = composed(split, number)
        digits = [object_ for object_ in scene.objects if not object_.is_crowd]
        crowds = [object_ for object_ in scene.objects if object_.is_crowd]
        assert len(digits) in ((0,) if number % 40 == 39 else range(1, 5))
        assert len(crowds) == (number % 40 == 20)
        together = sum(
            (object_.mask.astype(int) for object_ in scene.objects), np.zeros((128, 128))
        )
        assert together.max() <= 1
        assert scene.pixels.shape == (128, 128, 3)
        sizes += [np.ptp(np.nonzero(object_.mask)[0]) + 1 for object_ in digits[-1:]]
        for object_ in scene.objects:
            colours = scene.pixels[object_.mask].astype(float)
            assert colours.std(0).mean() < 20, "a colour of its own"
        shown = together > 0
        bright = scene.pixels[shown].mean() if scene.objects else 255
        darker.append(scene.pixels[~shown].mean() < bright)
    assert all(darker), "bright digits on dark photographs, as the classifiers know them"
    # The last of a scene is covered by none.
    assert min(sizes) >= 28 and max(sizes) <= 72 and max(sizes) - min(sizes) > 30


def test_a_digit_that_would_cover_more_than_two_fifths_of_another_is_left_out():
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
    assert np.mean(np.array(covered) == 0) > 0.5, "of a few places the one that covers least"


def test_scenes_show_digits_of_their_own_split_alone(tmp_path):
    digits = mnist()
    for split in ("train", "val"):
        folder = tmp_path / split
        scenes.write_coco(folder, {split: 5}, {split: digits[split]})
        assert len(list((folder / f"{split}2017").iterdir())) == 5
    train, val = composed("train", 3), composed("val", 3)
    assert not np.array_equal(train.pixels, val.pixels)


def test_polygons_and_runs_are_exact():
    rng = np.random.default_rng(0)
    with_polygons = 0
    for _ in range(1500):
        mask = rng.random(rng.integers(1, 9, 2)) < rng.choice([0.2, 0.5, 0.8, 1.0])
        height, width = mask.shape
        runs = {"size": [height, width], "counts": mask_encoding.run_lengths(mask)}
        decoded = reference.decode(reference.frPyObjects(runs, height, width))
        assert np.array_equal(decoded, mask)
        if polygons := mask_encoding.polygons(mask):
            with_polygons += 1
            packed = reference.merge(reference.frPyObjects(polygons, height, width))
            assert np.array_equal(reference.decode(packed), mask)
    assert with_polygons > 1000
    ring = np.pad(np.zeros((1, 1), bool), 1, constant_values=True)
    assert mask_encoding.polygons(ring) is None
    assert mask_encoding.polygons(~ring) == [[1, 1, 2, 1, 2, 2, 1, 2]]


@pytest.mark.parametrize("key", KEYS)
def test_fewer_scenes_are_the_first_ones_and_come_out_the_same_again(made, tmp_path, key):
    root = tmp_path / key
    assert make(key, dataset(key), root) is True
    whole = contents(made[0] / "data" / "demo" / key)
    pictures = {name: digest for name, digest in contents(root).items() if "scene_" in name}
    assert len(pictures) == (9 if key == "coco" else 18)
    assert pictures.items() <= whole.items()
    assert make(key, dataset(key), root) is False
    before = contents(root)
    shutil.rmtree(root)
    assert make(key, dataset(key), root) is True and contents(root) == before
    # Of another number they are made anew: nothing but scenes is in the way.
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
@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_incomplete_scenes_are_made_anew(tmp_path, key, file, harm):
    root = tmp_path / key
    make(key, dataset(key), root)
    before, path = contents(root), root / file
    if harm == "gone":
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
    ("key", "change", "complaint"),
    [
        ("coco", {"classes": 11}, "datasets.coco.classes is 11, but .* makes 10; set it to 10"),
        ("coco", {"layout": "ade20k"}, "coco.layout is ade20k, but .* makes coco; set it to coco"),
        ("coco", {"train_images": 80}, "images_with_objects is 585, but .* makes 78; set it to 78"),
        ("ade20k", {"classes": 10}, "datasets.ade20k.classes is 10, but .* makes 11"),
    ],
)  # fmt: skip
def test_params_that_expect_something_else_are_refused(tmp_path, key, change, complaint):
    with pytest.raises(UserError, match=complaint):
        make(key, PROJECT.datasets[key].model_copy(update=change), tmp_path / key)
    assert not list(tmp_path.iterdir())


def test_photographs_come_with_the_package():
    """Nothing is fetched: each is a file of the installed package."""
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
        assert np.asarray(photograph).std() > 10, "no empty picture"


def test_annotations_are_as_coco_has_them(made):
    root = made[0] / "data" / "demo" / "coco"
    content = json.loads((root / scan.annotation_file("val")).read_text())
    assert [image["id"] for image in content["images"]] == list(range(1, 151))
    assert {tuple(sorted(each)) for each in content["annotations"]} == {
        ("area", "bbox", "category_id", "id", "image_id", "iscrowd", "segmentation")
    }
    with Image.open(root / "val2017" / content["images"][0]["file_name"]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 128))


def test_a_digit_that_lies_on_its_side_still_fits_a_scene():
    wide = np.zeros((28, 28), np.uint8)
    wide[12:15, 2:26] = 255
    assert scenes._ink(wide, 72).shape == (72, 128)
