"""COCO's layout: images, boxes and masks against pycocotools, and errors of annotations."""

import hashlib
import json
import random
import threading

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO

from smt import dag
from smt.commands.data import _warn_of_what_is_left_out
from smt.config.datasets import Dataset
from smt.data.coco import CocoSplit
from smt.datasets import coco_json, manifest, manifest_writer, masks, verify
from smt.errors import DataError
from smt.runs.paths import Layout
from tests.helpers.params import project_at
from tests.helpers.tiny_data import TinyData

PROJECT = project_at("demo")
SIZES = {30: (40, 50), 10: (36, 33), 20: (60, 48), 5: (31, 64), 40: (50, 50)}
"""Height and width of each image, by id."""


def square(x, y, side):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def rle_of(mask, compressed=False):
    if compressed:
        rle = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": counts}


def random_mask(seed, size):
    return np.random.default_rng(seed).random(size) < 0.4


class Coco(TinyData):
    """A data set of five images for training and one for validation, whose JSON can be changed."""

    def __init__(self, folder):
        self.folder, self.root = folder, folder / "tiny"
        self.layout = Layout("demo", results=folder / "results", data=folder)
        self.images_with_objects = 3  # of five: one is empty, one is 31 pixels high
        categories = [{"id": 7, "name": "café"}, {"id": 3, "name": "dog"}]
        self.train = {
            "info": {"year": 2017},
            "images": [self._image(id_, *size) for id_, size in SIZES.items()],
            "annotations": [
                self.annotation(1, 30, 7, [2, 3, 10, 10], square(2, 3, 10)),
                self.annotation(2, 20, 3, [5.5, 6, 20, 8], rle_of(random_mask(2, SIZES[20]), True)),
                self.annotation(3, 30, 3, [40, 30, 20, 20], rle_of(random_mask(3, SIZES[30]))),
                self.annotation(
                    4, 20, 7, [0, 0, 48, 60], rle_of(random_mask(4, SIZES[20])), crowd=1
                ),
                self.annotation(5, 10, 3, [1, 1, 5, 5], square(1, 1, 5)),
                self.annotation(6, 5, 7, [1, 1, 5, 5], square(1, 1, 5)),
                self.annotation(7, 10, 3, [4, 4, 6, 6], [*square(4, 4, 3), *square(9, 9, 1)]),
            ],
            "categories": categories,
        }  # fmt: skip
        self.val = {
            "images": [self._image(1, 40, 40)],
            "annotations": [self.annotation(1, 1, 7, [2, 3, 10, 10], square(2, 3, 10))],
            "categories": categories,
        }
        for split in ("train", "val"):
            (self.root / f"{split}2017").mkdir(parents=True)
            for image in getattr(self, split)["images"]:
                self.write_image(split, image["file_name"], image["height"], image["width"])

    def _image(self, id_, height, width):
        return {"id": id_, "file_name": f"{id_:012d}.jpg", "height": height, "width": width}

    def write_image(self, split, name, height, width):
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(self.root / f"{split}2017" / name)

    def annotation(self, id_, image, category, box, segmentation, crowd=0, area=50.5):
        return {
            "id": id_, "image_id": image, "category_id": category, "bbox": box, "area": area,
            "iscrowd": crowd, "segmentation": segmentation,
        }  # fmt: skip

    def file(self, split):
        return self.root / "annotations" / f"instances_{split}2017.json"

    def write(self):
        """Write both files of annotations, non-ASCII names as they are."""
        (self.root / "annotations").mkdir(exist_ok=True)
        for split in ("train", "val"):
            self.file(split).write_text(json.dumps(getattr(self, split), ensure_ascii=False))

    @property
    def project(self):
        dataset = Dataset(
            title="tiny", layout="coco", root="tiny", classes=2, source="counted", generator=None,
            train_images=5, val_images=1, images_with_objects=self.images_with_objects,
        )  # fmt: skip
        return PROJECT.model_copy(update={"datasets": {"tiny": dataset}})

    def open(self, split="train", **options):
        self.write()
        return CocoSplit(self.root, split, self.manifest(), **options)

    def refusal(self, write=True):
        if write:
            self.write()
        return super().refusal()


@pytest.fixture
def coco(tmp_path):
    return Coco(tmp_path)


def test_a_manifest_has_classes_and_counts(coco):
    coco.write()
    coco.manifest()
    written = manifest.read(coco.layout, "tiny")
    assert written.classes == ("dog", "café"), "sorted by id"
    assert (written.layout, written.splits["train"].images) == ("coco", 5)
    # Two dogs in image 10, one each in 20 and 30; café in 30 and 5, and as a crowd in 20.
    assert written.splits["train"].per_class == (3, 2)
    reasons = dict.fromkeys(("without_mask", "ignored", "without_area"), 0)
    expected = {"objects": 6, "crowds": 1, "empty_images": 1, **reasons}
    assert written.splits["train"].facts == expected
    assert written.splits["val"].facts == {**dict.fromkeys(expected, 0), "objects": 1}


def test_the_digest_covers_every_byte_of_annotations_and_images(coco):
    coco.write()
    (coco.root / "annotations" / "captions_train2017.json").write_text("ignored")
    lines = [
        f"{path.relative_to(coco.root)}\t{path.stat().st_size}\t"
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for split in ("train", "val")
        for path in (coco.file(split), *sorted((coco.root / f"{split}2017").iterdir()))
    ]
    before = coco.manifest().digest
    assert before == hashlib.sha256("".join(lines).encode()).hexdigest()
    coco.file("val").write_text(coco.file("val").read_text() + "\n")
    other = coco.manifest().digest
    assert other != before and coco.manifest().digest == other


def test_images_are_sorted_by_id_with_sizes_and_categories(coco):
    split = coco.open()
    assert [image.id for image in split.images] == [5, 10, 20, 30, 40]
    assert {image.id: (image.height, image.width) for image in split.images} == SIZES
    assert split.images[2].path == coco.root / "train2017" / "000000000020.jpg"
    assert split.load_image(2).size == (48, 60)
    assert (split.classes, split.category_ids) == (("dog", "café"), (3, 7))
    assert (len(split), split.annotation_file) == (5, coco.file("train"))


def test_boxes_are_clipped_corners_without_crowds(coco):
    split = coco.open()
    annotation = split.annotation(3)  # image 30, 40 x 50 pixels
    assert annotation.boxes.tolist() == [[2, 3, 12, 13], [40, 30, 50, 40]]
    assert annotation.labels.tolist() == [1, 0]
    assert (annotation.boxes.dtype, annotation.labels.dtype) == (np.float32, np.int64)
    assert split.annotation(2).boxes.tolist() == [[5.5, 6, 25.5, 14]]
    empty = split.annotation(4)
    assert empty.boxes.shape == (0, 4) and empty.labels.shape == (0,)
    with pytest.raises(IndexError, match="image 5 of 5"):
        split.annotation(5)


def test_objects_of_an_image_have_the_order_of_the_file(coco):
    coco.train["annotations"] = [
        coco.annotation(id_, (10, 20, 30)[id_ % 3], 7, [1, 1, 1 + id_ / 20, 9], square(1, 1, 5))
        for id_ in range(400, 0, -1)
    ]
    split = coco.open()
    widths = np.diff(split.annotation(3).boxes[:, [0, 2]])[:, 0]  # image 30
    assert np.allclose(widths, [1 + id_ / 20 for id_ in range(400, 0, -1) if id_ % 3 == 2])


def test_masks_equal_those_of_pycocotools(coco):
    split, expected = coco.open(), COCO(str(coco.file("train")))
    for index, image in enumerate(split.images):
        objects = expected.loadAnns(expected.getAnnIds([image.id], iscrowd=0))
        image_masks = split.masks(index)
        assert (
            image_masks.shape == (len(objects), image.height, image.width)
            and image_masks.dtype == bool
        )
        for mask, entry in zip(image_masks, objects, strict=True):
            assert np.array_equal(mask, expected.annToMask(entry).astype(bool))
    assert np.array_equal(split.masks(2)[0], random_mask(2, (60, 48)))
    assert np.array_equal(split.masks(3)[1], random_mask(3, (40, 50)))
    assert split.masks(1).sum((1, 2)).tolist() == [25, 10], "two polygons, one object"


def test_trainable_images_have_an_object_and_are_not_tiny(coco):
    crowd, box = rle_of(random_mask(4, (50, 50))), [4, 4, 0, 6]
    coco.train["annotations"].append(coco.annotation(8, 40, 7, [0, 0, 9, 9], crowd, crowd=1))
    assert [coco.open().images[index].id for index in coco.open().trainable] == [10, 20, 30]
    # A box without an area is no object, but mmdet keeps its image.
    coco.train["annotations"].append(coco.annotation(9, 40, 7, box, square(4, 4, 3)))
    coco.images_with_objects = 4
    split = coco.open()
    assert [split.images[index].id for index in split.trainable] == [10, 20, 30, 40]
    assert len(split.annotation(4).boxes) == len(split.masks(4)) == 0


@pytest.mark.parametrize(
    ("change", "why", "reason"),
    [
        ({"bbox": [4, 4, 0, 6]}, "no width", "without_area"),
        ({"bbox": [4, 4, 6, -1]}, "no height", "without_area"),
        ({"bbox": [4, 4, 0.5, 6]}, "less than a pixel", "without_area"),
        ({"bbox": [float("nan"), 4, 6, 6]}, "no number", "without_area"),
        ({"bbox": [4, 4, float("inf"), 6]}, "no end", "without_area"),
        ({"bbox": [60, 4, 6, 6]}, "right of the image", "without_area"),
        ({"bbox": [4, -9, 6, 6]}, "above the image", "without_area"),
        ({"area": 0}, "no area", "without_area"),
        ({"area": float("nan")}, "no area either", "without_area"),
        ({"ignore": 1}, "to be left out", "ignored"),
    ],
)
def test_unusable_objects_are_counted_by_reason_and_left_out(coco, change, why, reason):
    coco.train["annotations"][2].update(change)
    split = coco.open()
    counts = manifest.read(coco.layout, "tiny").splits["train"].facts
    assert (counts["objects"], counts["crowds"], counts[reason]) == (5, 1, 1)
    assert split.annotation(3).labels.tolist() == [1] and len(split.masks(3)) == 1


NO_MASK = ([], None, [[1, 1, 2, 2]])
"""Segmentations that are no mask; the last is a polygon of two corners."""


@pytest.mark.parametrize("segmentation", NO_MASK)
def test_an_object_without_a_mask_is_kept_for_box_heads_only(coco, segmentation):
    coco.train["annotations"][2]["segmentation"] = segmentation
    assert coco.open().annotation(3).labels.tolist() == [1, 0]
    counts = manifest.read(coco.layout, "tiny").splits["train"].facts
    assert (counts["objects"], counts["without_mask"]) == (6, 1)
    with_masks = coco.open(masks=True)
    assert with_masks.annotation(3).labels.tolist() == [1] and len(with_masks.masks(3)) == 1


def test_annotations_without_masks_train_box_heads_only(coco):
    for split in (coco.train, coco.val):
        for number, entry in enumerate(split["annotations"]):
            entry["segmentation"] = []
            if number % 2:
                del entry["segmentation"]
    split = coco.open()
    assert split.annotation(3).boxes.tolist() == [[2, 3, 12, 13], [40, 30, 50, 40]]
    with pytest.raises(DataError, match=r"6 of 7 annotations of .* have no mask, such as") as error:
        coco.open(masks=True)
    assert "train one of boxes alone" in str(error.value)


def test_mask_evaluation_requires_a_mask_of_every_object(coco):
    coco.val["annotations"].append(coco.annotation(9, 1, 3, [5, 5, 9, 9], [], crowd=1))
    coco.open("val")
    coco.open("train", masks=True)
    with pytest.raises(DataError, match=r"1 of 2 annotations of .* such as annotation 9, and this"):
        coco.open("val", masks=True)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_usable_objects_is_refused(coco, split):
    annotations = getattr(coco, split)["annotations"]
    for entry in annotations:
        entry["iscrowd"] = 1
    annotations[0].update(iscrowd=0, bbox=[1, 1, 0, 5])
    message = coco.refusal()
    assert f"{coco.file(split)} has no usable object: of {len(annotations)} annotations" in message
    assert f"{len(annotations) - 1} crowds, 0 ignored, 1 without area" in message
    getattr(coco, split)["annotations"] = []
    assert "has no usable object: of 0 annotations" in coco.refusal()


def test_a_large_share_of_unused_objects_is_warned_of_by_reason(coco, capsys):
    coco.train["annotations"][1]["bbox"] = [4, 4, 0, 6]
    coco.train["annotations"][2]["segmentation"] = []
    coco.write()
    _warn_of_what_is_left_out(coco.manifest())
    prefix = "smt: warning: tiny: 1 of 7 annotations of train"
    crowds, area, mask = capsys.readouterr().err.splitlines()
    assert crowds == f"{prefix} are crowds (iscrowd: 1), and not trained on"
    assert area.startswith(f"{prefix} have no area inside their image, and are not trained on: ")
    assert mask.startswith(f"{prefix} have no mask: heads that predict masks need one, ")


def test_relative_boxes_are_refused(coco):
    for entry in coco.val["annotations"]:
        entry["bbox"] = [0.1, 0.2, 0.3, 0.4]
    message = coco.refusal()
    assert f"{coco.file('val')}: no box reaches beyond 1, as in fractions of the image" in message


def test_exif_orientation_applies_to_the_image_and_its_size(coco):
    """As OpenCV reads it for mmdet; an orientation of 6 is a camera held upright."""
    upright = np.zeros((60, 48, 3), np.uint8)
    upright[:20] = 255  # its top is bright
    exif = Image.Exif()
    exif[0x0112] = 6
    path = coco.root / "train2017" / "000000000020.jpg"
    Image.fromarray(np.rot90(upright)).save(path, exif=exif, quality=95)
    assert Image.open(path).size == (60, 48)
    split = coco.open()  # of 60 x 48 pixels by the annotations
    pixels = np.asarray(split.load_image(2))
    assert pixels.shape == (60, 48, 3)
    assert pixels[:15].min() > 240 and pixels[25:].max() < 15


def of_annotation(**change):
    return lambda coco: coco.train["annotations"][1].update(change)


def test_an_invalid_annotation_is_refused_by_name(coco):
    other = rle_of(random_mask(2, (48, 60)), compressed=True)
    short = {"size": [60, 48], "counts": [100, 20]}
    for change, expected_error in (
        ({"image_id": 31}, "annotation 2 has image_id 31, which is none of its images (1 such)"),
        ({"category_id": 4}, "annotation 2 has category_id 4, which is none of its categories"),
        ({"id": 1}, "annotation id 1 is given twice"),
        ({"id": 2.5}, "annotation 2.5 (byte "),
        ({"iscrowd": 2}, "annotation 2: iscrowd is 2; valid: 0 or 1"),
        ({"image_id": "20"}, "is wrong: its image_id is '20'; valid: "),
        ({"bbox": [1, 2, 3]}, "is wrong: its bbox is [1, 2, 3]; valid: "),
        ({"bbox": ["1", 2, 3, 4]}, "is wrong: its bbox is ['1', 2, 3, 4]; valid: "),
        ({"area": None}, "is wrong: its area is None; valid: "),
        ({"segmentation": other}, "2 of image 20 has a mask of 48 x 60 pixels; valid: 60 x 48"),
        ({"segmentation": short}, "its RLE covers 120 pixels, not the 60 x 48 of its size"),
        ({"segmentation": {**short, "counts": [-1, 2881]}}, "its RLE covers 2880 pixels, not"),
        ({"segmentation": {**short, "counts": "~~"}}, "its RLE is not {size:"),
        ({"segmentation": {**short, "counts": "o"}}, "its RLE is not {size:"),
        ({"segmentation": {"counts": [2880]}}, "its RLE is not {size:"),
        ({"segmentation": "text"}, "its segmentation is neither polygons nor RLE"),
        ({"segmentation": {**short, "counts": [100.0, 2780]}}, "are not integers"),
        ({"segmentation": {"size": [60.0, 48], "counts": [2880]}}, "are not integers"),
        ({"segmentation": [{"size": [60, 48], "counts": [2880]}]}, "its RLE is in a list"),
        ({"segmentation": [[1, 1, 5, 1, 5, "5"]]}, "a polygon of it is a list of texts"),
        ({"segmentation": [[[1, 1], [5, 1], [5, 5]]]}, "a polygon of it is a list of lists"),
        ({"segmentation": [[1, 1], [5, 1], [5, 5]]}, "its corners are pairs"),
        ({"segmentation": [1, 1, 5, 1, 5, 5]}, "its segmentation is a list of numbers"),
        ({"segmentation": [[1, 1, 5, 1, float("nan"), 5]]}, "a corner of its polygons is not"),
        ({"segmentation": [[1, 1, 500, 1, 5, 5]]}, "2 of image 20 has a corner at 1 or 500"),
        ({"segmentation": [[1, 1, -61, 1, 5, 5]]}, "2 of image 20 has a corner at -61 or 5"),
    ):  # fmt: skip
        before = dict(coco.train["annotations"][1])
        of_annotation(**change)(coco)
        message = coco.refusal()
        assert f"{coco.file('train')}: annotation" in message and expected_error in message
        assert "; valid: " in message or "must be unique" in message
        coco.train["annotations"][1] = before


@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "bbox", "area", "iscrowd"])
def test_an_annotation_with_a_missing_key_is_refused(coco, key):
    coco.train["annotations"][1].pop(key)
    message = coco.refusal()
    assert f"annotation {'number 1' if key == 'id' else 2} (byte " in message
    assert f"has no {key}; valid: id, image_id, " in message


def test_invalid_images_and_categories_are_refused_by_name(coco):
    for where, change, expected_error in (
        ("images", {"id": 30}, "image id 30 is given twice"),
        ("images", {"id": 2**70}, f"image {2**70} has no valid id, but"),
        ("images", {"id": True}, "image True has no valid id, but True; valid: a whole number"),
        ("images", {"height": "36"}, "image 10 has no valid height, but '36'; valid: a whole"),
        ("images", {"width": 0}, "image 10 is 36 x 0 pixels; valid: 1 to 65535"),
        ("images", {"file_name": "../x.jpg"}, "image 10 is in file '../x.jpg'; valid: a name in"),
        ("images", {"file_name": "a\nb.jpg"}, "image 10 has no valid file_name"),
        (
            "images",
            {"file_name": f"{30:012d}.jpg"},
            "file name of an image '000000000030.jpg' is given",
        ),
        ("categories", {"id": 7}, "category id 7 is given twice"),
        ("categories", {"name": "café"}, "category name 'café' is given twice"),
        ("categories", {"name": None}, "category 3 has no valid name, but None; valid: one line"),
    ):
        before = dict(coco.train[where][1])
        coco.train[where][1].update(change)
        assert f"{coco.file('train')}: {expected_error}" in coco.refusal()
        coco.train[where][1] = before
    for key in ("images", "annotations", "categories"):
        before = coco.train.pop(key)
        assert f"{coco.file('train')} has no '{key}'" in coco.refusal()
        coco.train[key] = before
    coco.train["images"] = {"id": 3}
    assert "its image entries are not a list" in coco.refusal()


def test_missing_and_unlisted_images_are_refused(coco):
    folder = coco.root / "train2017"
    (folder / "000000000020.jpg").rename(folder / "other.jpg")
    message = coco.refusal()
    assert f"{folder}/000000000020.jpg is missing, but {coco.file('train')} has it as im" in message
    assert "as image 20 (1 such); bring tiny as ROOT/train2017/IMAGE and " in message
    coco.train["images"] = [image for image in coco.train["images"] if image["id"] != 20]
    coco.train["annotations"] = [
        entry for entry in coco.train["annotations"] if entry["image_id"] != 20
    ]
    assert (
        f"{folder}/other.jpg is no image of {coco.file('train')} (1 such); valid" in coco.refusal()
    )


def test_an_image_of_another_size_is_refused_before_and_during_training(coco):
    split = coco.open()
    coco.layout.manifest("tiny").unlink()
    coco.write_image("train", "000000000020.jpg", 48, 60)
    path = coco.root / "train2017" / "000000000020.jpg"
    expected = f"{coco.file('train')} says 60 x 48"
    message = coco.refusal()
    assert f"{path} is 48 x 60 pixels (height x width), but {expected} of image 20" in message
    with pytest.raises(DataError, match=r"is 48 x 60 pixels, but .* says 60 x 48") as error:
        split.load_image(2)
    assert str(path) in str(error.value)
    path.write_bytes(b"no image")
    assert f"{path} is no image (" in coco.refusal()
    with pytest.raises(DataError, match="cannot read image"):
        split.load_image(2)


def test_threads_end_when_an_inspection_fails(coco):
    """If the garbage collector ended them while others start, they could deadlock."""
    coco.open()
    coco.write_image("train", "000000000020.jpg", 48, 60)
    before = threading.active_count()
    with pytest.raises(DataError, match=r"is 48 x 60 pixels") as error:
        coco.manifest()
    assert error.value.__traceback__ is not None and threading.active_count() == before


def test_categories_must_match_params_and_the_other_split(coco):
    coco.val = {**coco.val, "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "café"}]}
    message = coco.refusal()
    assert f"{coco.file('val')} has other categories than {coco.file('train')}" in message
    coco.train["categories"].append({"id": 9, "name": "ox"})
    assert f"{coco.file('train')} has 3 categories, expected 2" in coco.refusal()


def test_images_with_objects_must_match_params(coco):
    coco.images_with_objects = 5
    message = coco.refusal()
    assert (
        f"{coco.file('train')} has 3 images that show an object and are trained on, 5 ex" in message
    )
    assert "set images_with_objects" in message


def test_a_truncated_file_is_refused_with_the_byte(coco):
    coco.write()
    content = coco.file("train").read_bytes()
    for length in (0, 1, len(content) // 3, len(content) // 2, len(content) - 1):
        coco.file("train").write_bytes(content[:length])
        message = coco.refusal(write=False)
        assert f" of {length})" in message or "file of 0 bytes" in message
        assert str(coco.file("train")) in message
    coco.file("train").write_bytes(b"\xef\xbb\xbf" + content)
    assert "a byte order mark (BOM)" in coco.refusal(write=False)
    coco.file("train").write_bytes(content[:200] + b"\xff" + content[201:])
    assert (
        f"is truncated or not JSON (invalid UTF-8 at byte 200 of {len(content)})"
        in coco.refusal(write=False)
    )
    for text, expected_error in (
        (b"[]", "'{' expected at byte 0 of 2"),
        (b'{"images": [], "images": []}', "'images' is not a key, or is given twice, at byte 23"),
        (b'{"images": []} {', "more than one value at byte 15 of 16"),
        (b'{"annotations": [, ]}', "Expecting value at byte 17 of 21"),
        (b'{"annotations": 3}', "'[' expected at byte 16 of 18"),
        (b'{"images": ' + b"[" * 100_000, "too deeply nested brackets"),
    ):
        coco.file("train").write_bytes(text)
        assert expected_error in coco.refusal(write=False)
    coco.file("train").unlink()
    assert f"{coco.file('train')} cannot be read (No such file" in coco.refusal(write=False)


def test_a_streamed_array_equals_json_and_has_byte_ranges():
    rng = random.Random(0)
    for indent in (None, 3):
        elements = [
            {"näme": "zwölf 十二 🙂"[: rng.randint(0, 10)], "x": rng.random(), "y": [1, None, {}]}
            for _ in range(50)
        ]
        value = {"": "é", "before": {"long": [1]}, "long": elements, "after": "\u2028"}
        for ascii_only in (True, False):
            content = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
            elements_read = []
            rest = coco_json.read(content, "long", lambda *element: elements_read.append(element))  # noqa: B023
            assert rest == {**value, "long": None}
            assert [element for element, _, _ in elements_read] == elements
            assert [json.loads(content[start:end]) for _, start, end in elements_read] == elements
    assert coco_json.read(b' { "long" : [ ] } ', "long", lambda *element: None) == {"long": None}


def test_sizes_and_masks_of_rle_equal_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = rng.random(rng.integers(1, 40, 2)) < rng.choice([0.02, 0.5, 0.98])
        compressed, uncompressed = rle_of(mask, compressed=True), rle_of(mask)
        assert (
            masks.inspect_segmentation(compressed).size
            == masks.inspect_segmentation(uncompressed).size
            == mask.shape
        )
        assert (masks.rasterize([compressed, uncompressed], *mask.shape) == mask).all()


def test_annotations_changed_since_the_manifest_are_refused(coco):
    coco.write()
    written = coco.manifest()
    CocoSplit(coco.root, "train", written)
    content = coco.file("train").read_text()
    coco.file("train").write_text(content.replace("50.5", "51.5", 1))
    with pytest.raises(
        DataError, match=r"are not those that .*tiny\.train\.txt names; bring back"
    ) as e:
        CocoSplit(coco.root, "train", written)
    assert "\n" not in str(e.value) and str(coco.file("train")) in str(e.value)
    coco.file("train").unlink()
    with pytest.raises(DataError, match=r"annotations .* cannot be read .*smt data manifest tiny"):
        CocoSplit(coco.root, "train", written)
    coco.file("train").write_text(content)
    listed = written.list_file("train")
    listed.write_text(listed.read_text().replace("train2017", "train2018", 1))
    with pytest.raises(DataError, match=r"tiny\.train\.txt is not the one that its manifest names"):
        CocoSplit(coco.root, "train", written)


def test_changed_annotations_and_missing_images_are_named(coco):
    coco.write()
    coco.manifest()
    result = verify.verify(coco.project, coco.layout, "tiny")
    assert result.is_whole and result.stats.read == 8  # six images, two files of annotations
    content = coco.file("train").read_text()
    coco.file("train").write_text(content.replace("50.5", "51.5", 1))
    (coco.root / "val2017" / "000000000001.jpg").rename(coco.root / "val2017" / "2.jpg")
    (coco.root / "train2017" / "000000000020.jpg").unlink()
    result = verify.verify(coco.project, coco.layout, "tiny")
    assert [str(difference).split("  (")[0].split() for difference in result.differences.first] == [
        ["changed", "annotations/instances_train2017.json"],
        ["missing", "train2017/000000000020.jpg"],
        ["missing", "val2017/000000000001.jpg"],
        ["new", "val2017/2.jpg"],
    ]
    assert result.count_mismatches == (
        f"{coco.root}/train2017 has 4 images, published are 5 (counted)",
    )
    coco.file("val").unlink()
    result = verify.check(coco.project, coco.layout, "tiny")
    assert "missing     annotations/instances_val2017.json" in map(str, result.differences.first)


def test_an_incomplete_copy_is_refused(coco):
    coco.write()
    project = coco.project
    (coco.root / "train2017" / "000000000020.jpg").unlink()
    with pytest.raises(
        DataError, match="train2017 has 4 of 5 images, so the copy is incomplete"
    ) as e:
        manifest_writer.write(project, coco.layout, "tiny")
    assert "ROOT/train2017/IMAGE and ROOT/annotations/instances_train2017.json and" in str(e.value)


def test_the_dag_names_missing_files_and_folders(coco):
    coco.write()
    plan = dag.Plan(coco.project, coco.layout)
    assert plan.missing_data("tiny") == []
    coco.file("val").unlink()
    (coco.root / "val2017" / "000000000001.jpg").unlink()
    (coco.root / "val2017").rmdir()
    assert plan.missing_data("tiny") == [
        f"{coco.file('val')} of tiny",
        f"{coco.root}/val2017/ of tiny",
    ]
    assert plan.data_content("tiny")["layout"] == "coco"


def test_the_dag_content_of_imagenet_has_no_layout():
    project = project_at("paper")
    plan = dag.Plan(project, Layout("paper"))
    assert plan.data_content("imagenet22k") == {
        "classes": 21841, "train_images": 14197122, "val_images": 0, "generator": None,
    }  # fmt: skip
    assert plan.missing_data("imagenet22k") == ["data/imagenet22k/train/ of imagenet22k"]
