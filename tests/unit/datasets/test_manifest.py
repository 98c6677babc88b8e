"""Manifests of ImageNet's layout: classes, counts and digests, and errors of one line."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from smt.commands.data import command
from smt.config.experiments import Run
from smt.data.imagenet import ImageFolder
from smt.datasets import manifest, manifest_writer, validation_files
from smt.errors import DataError, UserError
from smt.runs.paths import Layout
from tests.helpers import ROOT
from tests.helpers.imagefolders import open_folder, project_of, write_images
from tests.helpers.params import project_at


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "tiny"
    write_images(folder / "train", classes=3, per_class=4)
    write_images(folder / "val", classes=3, per_class=2)
    return folder


@pytest.fixture
def layout(tmp_path):
    return Layout("demo", results=tmp_path / "results", data=tmp_path)


def write(root, layout, classes=3, train=12, val=6):
    return manifest_writer.write(project_of(root, classes, train, val), layout, "tiny")


def refusal(root, layout, **counts):
    """Return the error of a manifest of `root`, and assert that nothing was written."""
    with pytest.raises(DataError) as error:
        write(root, layout, **counts)
    assert not layout.manifest("tiny").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_manifest_has_classes_counts_and_sizes(root, layout):
    write(root, layout)
    read = manifest.read(layout, "tiny")
    assert read.classes == ("c0", "c1", "c2")
    assert {name: split.images for name, split in read.splits.items()} == {"train": 12, "val": 6}
    assert read.splits["val"].per_class == (2, 2, 2)
    size = sum(path.stat().st_size for path in (root / "train").rglob("*.JPEG"))
    assert read.splits["train"].total_bytes == size
    written = json.loads(layout.manifest("tiny").read_text())
    assert written["content"] == "bytes"
    # As before there were other layouts, because results are compared byte by byte.
    assert set(written) == {"classes", "content", "dataset", "digest", "splits"}
    assert set(written["splits"]["val"]) == {
        "images", "listed_in", "per_class", "sha256", "total_bytes",
    }  # fmt: skip


def test_the_digest_covers_sorted_names_sizes_and_contents(root, layout):
    lines = [
        f"{path.relative_to(root)}\t{path.stat().st_size}\t"
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for split in ("train", "val")
        for path in sorted((root / split).rglob("*.JPEG"))
    ]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert write(root, layout).digest == expected
    lists = [layout.manifest("tiny").with_name(f"tiny.{split}.txt") for split in ("train", "val")]
    assert "".join(path.read_text() for path in lists) == "".join(lines)


def test_the_digest_changes_with_names_and_bytes_of_images_only(root, layout):
    before = write(root, layout).digest
    (root / "train" / "c0" / "notes.txt").write_text("ignored")
    (root / "train" / "c0" / "._000.JPEG").write_text("ignored")
    (root / "train" / ".cache").mkdir()
    (root / "LICENSE").write_text("ignored")
    assert write(root, layout).digest == before
    image = root / "val" / "c1" / "001.JPEG"
    image.write_bytes(image.read_bytes() + b"x")
    changed = write(root, layout).digest
    image.rename(image.with_name("002.JPEG"))
    assert len({before, changed, write(root, layout).digest}) == 3


def test_images_are_sorted_by_class_then_name_with_any_known_suffix(root, layout):
    # "c0-b" sorts before "c0/..." as a path, but after "c0" as a class.
    (root / "train" / "c1").rename(root / "train" / "c0-b")
    (root / "val" / "c1").rename(root / "val" / "c0-b")
    (root / "train" / "c0" / "000.JPEG").rename(root / "train" / "c0" / "z.jpg")
    (root / "train" / "c2" / "001.JPEG").rename(root / "train" / "c2" / "Z.PnG")
    folder = open_folder(root, "train", 3, 12, 6)
    samples = [(str(path.relative_to(root / "train")), label) for path, label in folder.samples]
    c0, c0b, c2 = samples[:4], samples[4:8], samples[8:]
    assert c0 == [("c0/001.JPEG", 0), ("c0/002.JPEG", 0), ("c0/003.JPEG", 0), ("c0/z.jpg", 0)]
    assert [name for name, label in c0b if label == 1] == [f"c0-b/00{i}.JPEG" for i in range(4)]
    assert c2[-1] == ("c2/Z.PnG", 2) and [label for _, label in c2] == [2] * 4
    assert all(path.exists() for path, _ in folder.samples) and len(folder) == 12


def test_a_missing_data_set_is_refused(root, layout):
    shutil.rmtree(root)
    message = refusal(root, layout)
    assert f"no folder {root}" in message and "ROOT/train/CLASS/IMAGE" in message


def test_a_missing_split_is_refused(root, layout):
    shutil.rmtree(root / "val")
    assert f"{root}/val cannot be read (No such file" in refusal(root, layout)


def test_an_undecodable_validation_image_is_refused(root, layout):
    image = root / "val" / "c1" / "001.JPEG"
    image.write_bytes(image.read_bytes()[:300])
    message = refusal(root, layout)
    assert f"{image} cannot be decoded (" in message and "(1 such file, all in " in message


def test_an_undecodable_training_image_is_left_to_the_recipe(root, layout):
    image = root / "train" / "c1" / "001.JPEG"
    image.write_bytes(image.read_bytes()[:300])
    assert write(root, layout).splits["train"].images == 12


def test_files_of_unknown_suffix_are_named_if_images_are_missing(root, layout):
    (root / "train" / "c1" / "001.JPEG").rename(root / "train" / "c1" / "001.bmp")
    message = refusal(root, layout)
    assert (
        f"{root}/train has 11 of 12 images, and 1 files that are no images by their names"
        in message
    )
    assert "such as train/c1/001.bmp (valid: .jpeg, .jpg, .png)" in message


def test_a_folder_without_images_is_named(root, layout):
    (root / "train" / "__MACOSX" / "c0").mkdir(parents=True)
    message = refusal(root, layout)
    assert f"{root}/train has 4 class folders, of which __MACOSX has no images, expec" in message


def test_the_published_count_of_another_copy_may_be_set_in_params(root, layout):
    project = project_of(root, 3, 14, 6)
    tiny = project.datasets["tiny"].model_copy(update={"also_published": (13, 12)})
    project = project.model_copy(update={"datasets": {"tiny": tiny}})
    with pytest.raises(DataError, match="train has 12 images, as other copies of tiny do") as error:
        manifest_writer.write(project, layout, "tiny")
    assert "set datasets.tiny.train_images in params/data.yaml to 12" in str(error.value)


def test_a_validation_file_of_changed_size_is_named_before_a_run(root, layout):
    project = project_of(root, 3, 12, 6)
    write(root, layout)
    validation_files.require_unchanged(project, layout, "tiny")
    image = root / "val" / "c1" / "001.JPEG"
    image.write_bytes(image.read_bytes() + b"more")
    (root / "val" / "c2" / "001.JPEG").unlink()
    with pytest.raises(DataError, match=r"bytes, \d+ when its manifest was made \(2 such\)") as e:
        validation_files.require_unchanged(project, layout, "tiny")
    assert str(image) in str(e.value) and "run smt data manifest tiny --scale demo" in str(e.value)


def test_an_incomplete_copy_is_refused(root, layout):
    (root / "train" / "c1" / "003.JPEG").unlink()
    assert f"{root}/train has 11 of 12 images, so the copy is incomplete" in refusal(root, layout)


def test_more_images_than_expected_are_refused(root, layout):
    message = refusal(root, layout, train=10)
    assert f"{root}/train has 12 images, 2 more than the 10 of params" in message


def test_a_missing_class_is_refused(root, layout):
    shutil.rmtree(root / "train" / "c2")
    assert f"{root}/train has 2 class folders, expected 3" in refusal(root, layout)


def test_a_validation_split_without_class_folders_is_refused(root, layout):
    for path in list((root / "val").rglob("*.JPEG")):
        path.rename(root / "val" / f"{path.parent.name}_{path.name}")
    for label in range(3):
        (root / "val" / f"c{label}").rmdir()
    message = refusal(root, layout)
    assert f"{root}/val has 0 class folders beside 6 images that are in none, expected" in message


def test_an_empty_class_is_refused(root, layout):
    for path in (root / "val" / "c1").iterdir():
        path.rename(path.with_suffix(".part"))
    assert f"{root}/val/c1 has no images (1 such folder)" in refusal(root, layout)


def test_an_empty_file_is_refused(root, layout):
    (root / "train" / "c2" / "001.JPEG").write_bytes(b"")
    assert f"{root}/train/c2/001.JPEG is a file of 0 bytes" in refusal(root, layout)


def test_splits_of_different_classes_are_refused(root, layout):
    (root / "val" / "c1").rename(root / "val" / "d1")
    assert "no c1, but d1 (1 differ)" in refusal(root, layout)


def test_a_broken_link_is_refused(root, layout):
    image = root / "train" / "c2" / "001.JPEG"
    image.unlink()
    image.symlink_to(root / "nowhere.JPEG")
    assert f"{image} cannot be read (No such file" in refusal(root, layout)


def test_a_file_name_with_a_line_break_is_refused(root, layout):
    image = root / "train" / "c2" / "001.JPEG"
    image.rename(image.with_name("a\nb.JPEG"))
    assert f"{root}/train/c2 has a name with a tab, a line break" in refusal(root, layout)


def test_a_read_only_results_folder_is_an_error_of_one_line(root, layout, read_only_folder):
    elsewhere = Layout("demo", results=read_only_folder, data=layout.data)
    with pytest.raises(UserError, match="smt --results DIR") as error:
        write(root, elsewhere)
    assert "\n" not in str(error.value)


def test_a_modified_file_list_is_refused(root, layout):
    write(root, layout)
    path = layout.manifest("tiny").with_name("tiny.train.txt")
    path.write_text(path.read_text().replace("000.JPEG", "001.JPEG"))
    with pytest.raises(DataError, match=r"tiny\.train\.txt is not the one .* smt data manifest"):
        ImageFolder(root, "train", manifest.read(layout, "tiny"))


def class_map(layout, text):
    """Return the rows of the demo class map (10 of 100) after writing `text` to its file."""
    project = project_at("demo")
    path = layout.data_file(project.class_maps["imagenet22k_to_1k"].path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return manifest_writer.write(project, layout, "class_map:imagenet22k_to_1k")


def test_a_class_map_is_read_with_any_spacing(layout):
    rows = [5, 3, 99, *range(10, 17)]
    first = class_map(layout, "\n".join(map(str, rows)))
    assert manifest.rows(layout, "imagenet22k_to_1k") == tuple(rows)
    respaced = class_map(layout, "".join(f" {row} \r\n" for row in rows))
    reordered = class_map(layout, "\n".join(map(str, rows[::-1])))
    assert first.digest == respaced.digest != reordered.digest


@pytest.mark.parametrize(
    ("lines", "expected_error"),
    [
        (range(9), "has 9 lines, expected 10"),
        ([*range(9), 100], "line 10 is '100'; valid: a class number of 0 to 99"),
        ([*range(9), -1], "line 10 is '-1'; valid"),
        ([*range(9), "n01440764"], "line 10 is 'n01440764'; valid"),
        ([*range(9), 4], r"line 10 repeats source class 4 of line 5"),
    ],
)
def test_an_invalid_class_map_is_refused(layout, lines, expected_error):
    with pytest.raises(DataError, match=expected_error) as error:
        class_map(layout, "".join(f"{line}\n" for line in lines))
    assert "map22kto1k.txt" in str(error.value) and "\n" not in str(error.value)


def test_digests_name_the_command_that_makes_a_missing_manifest(layout):
    project = project_at("demo")
    with pytest.raises(DataError, match="run: smt data manifest imagenet1k --scale demo"):
        manifest.digests(project, layout, Run(experiment="imagenet1k_smt_tiny", seed=0))


def test_digests_refuse_a_manifest_of_other_params(root, layout):
    project = project_of(root, 3, 12, 6)
    tiny = project.datasets["tiny"]
    recipes = {**project.recipes, "imagenet1k": project.recipes["imagenet1k"].model_copy(
        update={"dataset": "tiny"})}  # fmt: skip
    run = Run(experiment="imagenet1k_smt_tiny", seed=0)
    written = manifest_writer.write(project, layout, "tiny")
    project = project.model_copy(update={"recipes": recipes})
    assert manifest.digests(project, layout, run) == {"tiny": written.digest}
    changed = {"tiny": tiny.model_copy(update={"train_images": 13})}
    with pytest.raises(DataError, match=r"params say 3 and .*13.*; run: smt data manifest tiny"):
        manifest.digests(project.model_copy(update={"datasets": changed}), layout, run)


def test_a_damaged_manifest_is_an_error_of_one_line(root, layout):
    write(root, layout)
    layout.manifest("tiny").write_text('{"digest": 3')
    with pytest.raises(DataError, match=r"is not a manifest .*; run: smt data manifest tiny") as e:
        manifest.read(layout, "tiny")
    assert "\n" not in str(e.value)


def test_a_mistyped_key_suggests_the_nearest(layout):
    with pytest.raises(UserError, match=r"no data set .*'imagenet1'.* did you mean imagenet1k"):
        manifest_writer.write(project_at("demo"), layout, "imagenet1")


def test_check_names_the_error_of_each_data_set_and_exits_with_3(tmp_path, monkeypatch):
    monkeypatch.setenv("SMT_PARAMS", str(ROOT / "params"))
    monkeypatch.setenv("SMT_DATA", str(tmp_path / "none"))
    result = CliRunner().invoke(command, ["check", "--scale", "paper"])
    lines = result.output.splitlines()
    assert result.exit_code == 3 and len(lines) == 5
    assert all(line.startswith("wrong ") for line in lines)
    for line, name in zip(lines, ("imagenet1k", "imagenet22k", "coco", "ade20k"), strict=False):
        assert f"{name}: no folder" in line
    assert "map22kto1k.txt" in lines[4]


def test_data_commands_do_not_import_torch():
    code = "import sys, smt.commands.data; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
