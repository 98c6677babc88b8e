"""ADE20K's layout: labels as classes, and errors of images and label maps."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from smt import dag
from smt.config.datasets import Dataset
from smt.data.ade20k import ADE20KSplit
from smt.datasets import manifest, verify
from smt.errors import DataError
from smt.runs.paths import Layout
from tests.helpers.params import project_at
from tests.helpers.tiny_data import TinyData

PROJECT = project_at("demo")
CLASSES, SIZE = 150, (20, 30)


def label_map(*values):
    """Return a label map whose columns repeat `values`."""
    return np.resize(np.array(values, np.uint8), (1, SIZE[1])).repeat(SIZE[0], 0)


class ADE20K(TinyData):
    """Three images for training and one for validation."""

    def __init__(self, folder):
        self.root = folder / "tiny"
        self.layout = Layout("demo", results=folder / "results", data=folder)
        self.images = self.root / "images" / "training"
        self.maps = self.root / "annotations" / "training"
        for name, labels in {
            "training/a": label_map(0, 1, 150), "training/b": label_map(0),
            "training/c": label_map(1), "validation/d": label_map(2, 0),
        }.items():  # fmt: skip
            for kind in ("images", "annotations"):
                (self.root / kind / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(self.root / "images" / f"{name}.jpg")
            Image.fromarray(labels).save(self.root / "annotations" / f"{name}.png")

    @property
    def project(self):
        dataset = Dataset(
            title="tiny", layout="ade20k", root="tiny", classes=CLASSES, train_images=3,
            val_images=1, source="counted", generator=None,
        )  # fmt: skip
        return PROJECT.model_copy(update={"datasets": {"tiny": dataset}})


@pytest.fixture
def ade20k(tmp_path):
    return ADE20K(tmp_path)


def test_a_manifest_has_classes_and_counts(ade20k):
    ade20k.manifest()
    written = manifest.read(ade20k.layout, "tiny")
    train, val = written.splits["train"], written.splits["val"]
    assert (written.layout, train.images, val.images) == ("ade20k", 3, 1)
    assert [train.per_class[label] for label in (0, 1, 149)] == [2, 0, 1] and sum(
        val.per_class
    ) == 1
    assert (train.facts, val.facts) == ({"blank_maps": 1}, {"blank_maps": 0})
    assert (written.classes[0], written.classes[149], len(written.classes)) == (
        "class_001", "class_150", CLASSES,
    )  # fmt: skip


def test_the_digest_covers_every_byte_of_images_and_label_maps(ade20k):
    lines = [
        f"{path.relative_to(ade20k.root)}\t{path.stat().st_size}\t"
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for split in ("training", "validation")
        for kind in ("annotations", "images")
        for path in sorted((ade20k.root / kind / split).iterdir())
    ]
    before = ade20k.manifest().digest
    assert before == hashlib.sha256("".join(lines).encode()).hexdigest()
    Image.fromarray(label_map(3)).save(ade20k.maps / "c.png")
    assert ade20k.manifest().digest != before


def test_label_0_is_ignored_and_classes_start_at_0(ade20k):
    split = ADE20KSplit(ade20k.root, "train", ade20k.manifest())
    assert [pair.image.name for pair in split.images] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [pair.map.name for pair in split.images] == ["a.png", "b.png", "c.png"]
    labels = split.label_map(0)
    assert (labels.dtype, labels.shape, len(split)) == (np.uint8, SIZE, 3)
    assert labels[0, :3].tolist() == [255, 0, 149]
    assert np.array_equal(labels, label_map(255, 0, 149))
    assert (split.label_map(1) == 255).all() and split.load_image(1).size == SIZE[::-1]


def test_labels_are_the_indices_of_a_palette(ade20k):
    image = Image.fromarray(label_map(2, 0, 14)).convert("P")
    image.putdata(label_map(2, 0, 14).ravel().tolist())
    image.putpalette([200, 10, 30] * 256)
    for bits in (8, 4):
        image.save(ade20k.maps / "c.png", bits=bits)
        split = ADE20KSplit(ade20k.root, "train", ade20k.manifest())
        assert np.array_equal(split.label_map(2), label_map(1, 255, 13))


def write_4_bit_png(path):
    """Write a PNG file of one grey channel of 4 bits, which Pillow cannot."""
    import struct
    import zlib

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 4, 0, 0, 0, 0)
    rows = (b"\0" + b"\x33" * (SIZE[1] // 2)) * SIZE[0]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )  # fmt: skip


def save(image, name="c.png", **options):
    return lambda data: image.save(data.maps / name, **options)


def truncate(data):
    content = (data.maps / "c.png").read_bytes()
    (data.maps / "c.png").write_bytes(content[: len(content) - 30])


def save_blank(height, width):
    return save(Image.fromarray(np.zeros((height, width), np.uint8)))


@pytest.mark.parametrize(
    ("damage", "expected_error"),
    [
        (lambda data: (data.images / "b.jpg").rename(data.images / "e.jpg"), "e.png is missing, t"),
        (lambda data: (data.maps / "b.png").unlink(), "b.png is missing, the map of {images}"),
        (save(Image.new("L", SIZE), "e.png"), "e.png has no image in {images} (1 such)"),
        (save_blank(30, 20), "c.png is 30 x 20 pixels (height x width), but its image {images}/c."),
        (save(Image.fromarray(label_map(7, 151))), "c.png has label 151; valid: 0 for no class"),
        (save(Image.new("RGB", SIZE)), "c.png is a PNG of mode RGB; valid: PNG with one channel"),
        (save(Image.new("LA", SIZE)), "c.png is a PNG of mode LA; valid: PNG with one channel"),
        (save(Image.new("1", SIZE)), "c.png is a PNG of mode 1; valid: PNG with one channel"),
        (save(Image.new("I;16", SIZE)), "c.png is a PNG of mode I;16; valid: PNG with one channel"),
        (save(Image.new("L", SIZE), format="JPEG"), "c.png is a JPEG of mode L; valid: PNG"),
        (lambda data: write_4_bit_png(data.maps / "c.png"), "c.png is a PNG of mode L; valid: PNG"),
        (truncate, "c.png cannot be decoded ("),
        (lambda data: (data.maps / "c.png").write_bytes(b"text"), "c.png cannot be decoded ("),
    ],
)  # fmt: skip
def test_invalid_pairs_of_image_and_label_map_are_refused(ade20k, damage, expected_error):
    damage(ade20k)
    expected = f"{ade20k.maps}/{expected_error.format(images=ade20k.images)}"
    assert expected in ade20k.refusal()


def test_images_that_share_a_map_and_invalid_images_are_refused(ade20k):
    (ade20k.images / "b.jpg").rename(ade20k.images / "a.png")
    message = ade20k.refusal()
    assert f"{ade20k.images}/a.png and a.jpg have one map, {ade20k.maps}/a.png" in message
    (ade20k.images / "a.png").rename(ade20k.images / "b.jpg")
    (ade20k.images / "b.jpg").write_bytes(b"text")
    assert f"{ade20k.images}/b.jpg is no image (" in ade20k.refusal()


def test_missing_images_and_empty_files_are_refused(ade20k):
    (ade20k.images / "b.jpg").unlink()
    message = ade20k.refusal()
    assert f"{ade20k.images} has 2 of 3 images, so the copy is incomplete (counted)" in message
    assert "bring tiny as ROOT/images/training/NAME.jpg and ROOT/annotations/training/" in message
    (ade20k.maps / "c.png").write_bytes(b"")
    assert f"{ade20k.maps}/c.png is a file of 0 bytes" in ade20k.refusal()


def test_class_names_are_read_from_objectinfo150(ade20k):
    path = ade20k.root / "objectInfo150.txt"
    rows = [f"{n}\t0.1\t{n}\t3\t1\tthing {n}, object" for n in range(1, CLASSES + 1)]
    head = "Idx\tRatio\tTrain\tVal\tStuff\tName"
    path.write_text("\r\n".join([head, *rows]))
    assert ade20k.manifest().classes[:2] == ("thing 1, object", "thing 2, object")
    ade20k.layout.manifest("tiny").unlink()
    for text, expected_error in (
        ("\n".join([head, *rows[:-1]]), "has 149 classes; valid: 1 to 150, a name each"),
        ("\n".join([head, *rows[::-1]]), "has 150 classes; valid: 1 to 150, a name each"),
        ("\n".join([head, *rows[:-1], rows[-1].replace("150,", "1,")]), "has 150 classes; valid"),
        ("Index\tWord\n1\twall", "is no table with tabs and the columns Idx and Name"),
    ):
        path.write_text(text)
        assert f"{path} {expected_error}" in ade20k.refusal()


def test_a_label_map_changed_since_the_manifest_is_named(ade20k):
    split = ADE20KSplit(ade20k.root, "train", ade20k.manifest())
    assert verify.verify(ade20k.project, ade20k.layout, "tiny").stats.read == 8
    save(Image.fromarray(label_map(7, 151)))(ade20k)
    with pytest.raises(
        DataError, match=r"c\.png has label 151; .* smt data manifest tiny"
    ) as error:
        split.label_map(2)
    assert "\n" not in str(error.value)
    result = verify.verify(ade20k.project, ade20k.layout, "tiny")
    assert [difference.path for difference in result.differences.first] == [
        "annotations/training/c.png"
    ]
    (ade20k.maps / "b.png").unlink()
    result = verify.check(ade20k.project, ade20k.layout, "tiny")
    assert "missing     annotations/training/b.png" in map(str, result.differences.first)
    assert result.count_mismatches == (), "maps are not counted as images"


def test_the_dag_names_missing_folders(ade20k):
    plan = dag.Plan(ade20k.project, ade20k.layout)
    assert plan.missing_data("tiny") == []
    ade20k.maps.rename(ade20k.root / "elsewhere")
    assert plan.missing_data("tiny") == [f"{ade20k.maps}/ of tiny"]


def test_a_split_without_labelled_pixels_is_refused(ade20k):
    """Its mIoU would be NaN, which is not JSON."""
    Image.fromarray(label_map(0)).save(ade20k.root / "annotations" / "validation" / "d.png")
    message = ade20k.refusal()
    assert f"{ade20k.root}/annotations/validation: no map has a pixel of a class" in message


def test_a_label_map_with_an_upper_case_suffix_is_named(ade20k):
    (ade20k.maps / "c.png").rename(ade20k.maps / "c.PNG")
    message = ade20k.refusal()
    assert f"{ade20k.maps}/c.png is missing" in message and "(1 such; c.PNG is another" in message


def test_an_image_rotated_by_exif_fits_its_label_map(ade20k):
    exif = Image.Exif()
    exif[0x0112] = 8
    pixels = np.zeros((*SIZE, 3), np.uint8)
    Image.fromarray(np.rot90(pixels, 3)).save(ade20k.images / "c.jpg", exif=exif)
    split = ADE20KSplit(ade20k.root, "train", ade20k.manifest())
    assert split.load_image(2).size == SIZE[::-1] and split.label_map(2).shape == SIZE


def test_class_names_are_read_after_a_byte_order_mark(ade20k):
    rows = "".join(f"{label}\tname {label}\n" for label in range(1, CLASSES + 1))
    (ade20k.root / "objectInfo150.txt").write_text(f"Idx\tName\n{rows}", encoding="utf-8-sig")
    assert ade20k.manifest().classes[0] == "name 1"
