"""Demo data sets of digits: real images, made deterministically and atomically."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from smt.commands.data import command
from smt.datasets import manifest, manifest_writer
from smt.datasets.demo import digits as demo
from smt.datasets.demo.digits import _side_by_side, make_class_map, mnist, sample_pairs
from smt.errors import DataError, UserError
from smt.runs.paths import Layout
from testbed.waiting import PATIENCE, wait_for
from tests.helpers import ROOT
from tests.helpers.in_process import smt
from tests.helpers.params import project_at

PROJECT = project_at("demo")
SMALL = project_at("smoke")


def smt_data(data, *arguments, **options):
    """Start `smt data ...` as a user does."""
    environment = {**os.environ, "SMT_DATA": str(data), "SMT_RESULTS": str(data / "results")}
    return subprocess.Popen(
        [sys.executable, "-m", "smt", "--params", str(ROOT / "params"), "data", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def contents(folder):
    """Return the digest of every file below `folder`, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def folder_options(folder):
    """Return options of a command that place data and results below `folder`."""
    options = {"params": ROOT / "params", "data": folder / "data", "results": folder / "results"}
    return [word for name, path in options.items() for word in (f"--{name}", path)]


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """All data of scale smoke and their manifests, made by the real commands."""
    folder = tmp_path_factory.mktemp("demo_data")
    options = folder_options(folder)
    for action in ("make", "manifest"):
        for key in manifest.keys_in_use(SMALL):
            result = smt(*options, "data", action, key, "--scale", "smoke")
            assert result.returncode == 0, result.stderr
    return Layout("smoke", results=folder / "results", data=folder / "data")


@pytest.fixture(scope="module")
def data_root(layout):
    return layout.data / "smoke"


@pytest.fixture
def copy(data_root, tmp_path):
    """A copy of the digits that a test may damage."""
    return shutil.copytree(data_root / "imagenet1k", tmp_path / "smoke" / "imagenet1k")


def make(root, project=SMALL):
    return demo.make("imagenet1k", project.datasets["imagenet1k"], root)


def test_demo_data_are_deterministic(data_root, tmp_path):
    for name in ("imagenet1k", "imagenet22k"):
        assert demo.make(name, SMALL.datasets[name], tmp_path / name)
        assert contents(tmp_path / name) == contents(data_root / name)


@pytest.mark.parametrize("name", ["imagenet1k", "imagenet22k"])
def test_images_are_square_rgb_jpegs_in_imagenets_layout(data_root, name):
    dataset = SMALL.datasets[name]
    for split, images in (("train", dataset.train_images), ("val", dataset.val_images)):
        expected = images // dataset.classes
        paths = sorted((data_root / name / split).rglob("*.JPEG"))
        counts = Counter(path.parent.name for path in paths)
        assert counts == {f"n{label:08d}": expected for label in range(dataset.classes)}
        with Image.open(paths[-1]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (56, 56))


def test_no_digit_is_in_both_splits():
    digits = mnist()
    train, val = (
        {image.tobytes() for image in digits[split].reshape(-1, 28, 28)} for split in digits
    )
    assert (len(train), len(val)) == (4000, 1000) and not train & val


def test_images_show_the_digit_of_their_class(data_root):
    """An image scaled back down is nearer to its own digit than to any other of the 5,000."""
    digits = mnist()
    for split, path in (
        ("train", "train/n00000003/n00000003_0007.JPEG"),
        ("val", "val/n00000008/n00000008_0009.JPEG"),
    ):
        with Image.open(data_root / "imagenet1k" / path) as image:
            downscaled = np.asarray(
                image.convert("L").resize((28, 28), Image.Resampling.BOX), float
            )
        all_digits = digits[split].astype(float)
        distances = ((all_digits - downscaled) ** 2).sum((2, 3))
        nearest = np.unravel_index(distances.argmin(), distances.shape)
        digit, number = int(path.split("/")[1][1:]), int(path[-9:-5])
        assert nearest == (digit, number)


@pytest.mark.parametrize(("split", "digits", "pairs"), [("train", 400, 60), ("val", 100, 10)])
def test_pairs_are_unique_and_of_digits_of_their_own_split(data_root, split, digits, pairs):
    sampled = list(sample_pairs(split, pairs))
    assert [label for label, _, _ in sampled] == [n for n in range(100) for _ in range(pairs)]
    for start in range(0, len(sampled), pairs):
        _, left, right = zip(*sampled[start : start + pairs], strict=True)
        assert len(set(left)) == len(set(right)) == pairs
        assert set(left + right) <= set(range(digits))
    # Images on disk equal the sampled pairs, apart from JPEG compression.
    label, first, second = sampled[-pairs]
    split_digits = mnist()[split]
    expected = _side_by_side(split_digits[label // 10, first], split_digits[label % 10, second])
    path = data_root / "imagenet22k" / split / "n00000099" / "n00000099_0000.JPEG"
    with Image.open(path) as image:
        difference = np.subtract(image.convert("L"), expected, dtype=float)
    assert np.abs(difference).mean() < 3


def test_a_pair_shows_its_first_digit_left_and_its_second_right():
    one, eight = mnist()["val"][1, 0], mnist()["val"][8, 0]
    pair = np.asarray(_side_by_side(one, eight), float)
    swapped = np.asarray(_side_by_side(eight, one), float)
    assert np.array_equal(pair[:, :28], swapped[:, 28:])
    assert np.array_equal(pair[:, 28:], swapped[:, :28])
    assert pair[:, 28:].sum() > 1.5 * pair[:, :28].sum() > 0


def test_the_class_map_has_the_pair_of_equal_digits(layout):
    classes = manifest.read(layout, "imagenet22k").classes
    rows = manifest.rows(layout, "imagenet22k_to_1k")
    assert [classes[row] for row in rows] == [f"n000000{digit}{digit}" for digit in range(10)]


def test_manifests_of_demo_data_cover_every_byte(layout, copy):
    before = manifest.read(layout, "imagenet1k")
    own = Layout("smoke", results=copy.parent.parent / "results", data=copy.parent.parent)
    assert before.content == "bytes"
    assert manifest_writer.write(SMALL, own, "imagenet1k").digest == before.digest
    flip_a_byte(copy)
    assert manifest_writer.write(SMALL, own, "imagenet1k").digest != before.digest


def flip_a_byte(root):
    """Change an image without changing its size."""
    path = root / "train" / "n00000004" / "n00000004_0001.JPEG"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


def test_complete_data_are_not_made_again(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert make(copy) is False
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


@pytest.mark.parametrize(
    "damage", ["image missing", "class missing", "byte flipped", "record missing"]
)
def test_incomplete_data_are_made_again(data_root, copy, damage):
    if damage == "image missing":
        (copy / "val" / "n00000001" / "n00000001_0005.JPEG").unlink()
    elif damage == "class missing":
        shutil.rmtree(copy / "train" / "n00000002")
    elif damage == "byte flipped":
        flip_a_byte(copy)
    else:
        (copy / "made.json").unlink()
    assert make(copy) is True
    assert contents(copy) == contents(data_root / "imagenet1k")
    assert {path.name for path in copy.parent.iterdir()} == {"imagenet1k", ".imagenet1k.lock"}


def test_files_of_the_user_are_never_replaced(copy):
    user_file = copy / "train" / "n00000001" / "holiday.JPEG"
    user_file.write_bytes(b"precious")
    (copy / "made.json").unlink()
    with pytest.raises(DataError, match=r"holds files that are not of this data set, such as .*ho"):
        make(copy)
    assert user_file.read_bytes() == b"precious"


def test_a_class_map_of_the_user_is_never_replaced(tmp_path):
    path = tmp_path / "map.txt"
    path.write_text("1\n2\n")
    with pytest.raises(DataError, match="holds another class map; move it away"):
        make_class_map(path)
    assert path.read_text() == "1\n2\n"


def test_concurrent_processes_make_the_same_data_once(tmp_path):
    processes = [smt_data(tmp_path, "make", "imagenet1k") for _ in range(2)]
    printed = sorted(process.communicate(timeout=PATIENCE)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    root = tmp_path / "demo" / "imagenet1k"
    description = f"{root}, 4000 train and 1000 val images in 10 classes\n"
    assert printed == [
        f"imagenet1k: is there already: {description}",
        f"imagenet1k: made {description}",
    ]


def test_a_killed_process_leaves_no_data_set(tmp_path):
    making = tmp_path / "demo" / ".imagenet1k.making"
    process = smt_data(tmp_path, "make", "imagenet1k")
    wait_for(lambda: making.exists() or process.poll() is not None, every=0.001)
    process.kill()
    process.communicate()
    assert process.returncode < 0 and not (tmp_path / "demo" / "imagenet1k").exists()
    assert make(tmp_path / "demo" / "imagenet1k", PROJECT) and not making.exists()


def test_a_full_disk_is_an_error_of_one_line_and_leaves_no_files(small_disk):
    root = small_disk / "demo" / "imagenet1k"
    with pytest.raises(DataError, match=r"the disk is full; make room, or .* smt --data DIR") as e:
        make(root, PROJECT)
    assert "\n" not in str(e.value) and str(root.parent) in str(e.value)
    assert {path.name for path in root.parent.iterdir()} == {".imagenet1k.lock"}


def test_a_read_only_folder_is_an_error_of_one_line(read_only_folder):
    process = smt_data(Path(read_only_folder), "make", "imagenet1k")
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
    assert error.count("\n") == 1 and "no permission to write there" in error


@pytest.mark.parametrize(
    ("key", "requested", "available"),
    [("train_images", 5000, 4000), ("train_images", 399, 390), ("val_images", 0, 10)],
)
def test_unavailable_counts_are_refused_before_writing(key, requested, available, tmp_path):
    dataset = PROJECT.datasets["imagenet1k"].model_copy(update={key: requested})
    message = rf"imagenet1k\.{key} is {requested}, .* set it to {available}$"
    with pytest.raises(UserError, match=message):
        demo.make("imagenet1k", dataset, tmp_path / "root")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["imagenet1k", "imagenet22k"])
def test_a_smaller_data_set_has_the_first_images_and_replaces_the_larger(name, data_root, tmp_path):
    root = shutil.copytree(data_root / name, tmp_path / name)
    larger = SMALL.datasets[name]
    counts = {"train_images": larger.classes, "val_images": larger.classes}
    assert demo.make(name, larger.model_copy(update=counts), root)
    smaller, original = contents(root), contents(data_root / name)
    assert len(smaller) == 2 * larger.classes + 1 < len(original)
    assert all(smaller[path] == original[path] for path in smaller if path != "made.json")
    assert {path.split("_")[-1] for path in smaller} == {"0000.JPEG", "made.json"}
    assert demo.make(name, larger, root) and contents(root) == original


@pytest.mark.parametrize("key", ["imagenet1k", "imagenet22k", "class_map:imagenet22k_to_1k"])
def test_making_data_that_the_user_has_to_bring_names_them_and_the_folder(
    key, monkeypatch, tmp_path
):
    monkeypatch.setenv("SMT_PARAMS", str(ROOT / "params"))
    monkeypatch.setenv("SMT_DATA", str(tmp_path))
    result = CliRunner().invoke(command, ["make", key, "--scale", "paper"])
    message = str(result.exception)
    assert isinstance(result.exception, DataError) and "\n" not in message
    assert "bring" in message and str(tmp_path) in message
    assert f"then run: smt data manifest {key} --scale paper" in message


def test_check_compares_names_and_sizes_and_verify_every_byte(layout, tmp_path, monkeypatch):
    shutil.copytree(layout.data, tmp_path / "data")
    shutil.copytree(layout.results, tmp_path / "results")
    for name, value in (("PARAMS", ROOT / "params"), ("DATA", tmp_path / "data")):
        monkeypatch.setenv(f"SMT_{name}", str(value))
    monkeypatch.setenv("SMT_RESULTS", str(tmp_path / "results"))
    result = CliRunner().invoke(command, ["check", "--scale", "smoke"])
    lines = result.output.splitlines()
    assert result.exit_code == 0
    keys = manifest.keys_in_use(SMALL)
    assert [line.split()[1].rstrip(":") for line in lines] == list(keys)
    assert all(line.startswith("ok ") and "as its manifest says" in line for line in lines)
    flip_a_byte(tmp_path / "data" / "smoke" / "imagenet1k")
    assert CliRunner().invoke(command, ["check", "imagenet1k", "--scale", "smoke"]).exit_code == 0
    result = CliRunner().invoke(command, ["verify", "imagenet1k", "--scale", "smoke"])
    assert result.exit_code == 3
    assert "wrong  imagenet1k: 1 file (1 changed) not as in" in result.output
    (tmp_path / "data/smoke/imagenet1k/val/n00000001/n00000001_0005.JPEG").unlink()
    result = CliRunner().invoke(command, ["check", "imagenet1k", "--scale", "smoke"])
    assert result.exit_code == 3
    assert "missing     val/n00000001/n00000001_0005.JPEG" in result.output
