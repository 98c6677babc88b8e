"""Packed data sets: WebDataset shards, their index, and errors of damaged packs."""

import hashlib
import json
import os
import pickle
import shutil
import tarfile
import threading

import numpy as np
import psutil
import pytest

from smt import dag
from smt.data.imagenet import ImageFolder
from smt.datasets import manifest, manifest_writer, validation_files, verify
from smt.datasets.decoding import decode
from smt.datasets.packs import index, pack, write
from smt.errors import DataError, UserError
from smt.runs.paths import Layout
from tests.helpers.imagefolders import project_of, write_images
from tests.helpers.params import project_at

CLASSES, TRAIN, VAL = 3, 4, 2
SHARD = 9000
"""Bytes: two or three images of some 2,700, with their headers."""


class Packable:
    """A data set `tiny` in folders, and its pack."""

    def __init__(self, folder):
        self.root, self.pack_folder = folder / "tiny", folder / "packed"
        write_images(self.root / "train", CLASSES, TRAIN)
        write_images(self.root / "val", CLASSES, VAL, seed=1)
        self.layout = Layout("demo", results=folder / "results", data=folder)
        self.project = project_of(self.root, CLASSES, CLASSES * TRAIN, CLASSES * VAL)
        self.manifest = manifest_writer.write(self.project, self.layout, "tiny")

    def pack(self, folder=None, **options):
        folder, options = folder or self.pack_folder, {"shard_size": SHARD, **options}
        return pack.pack(self.project, self.layout, "tiny", folder, **options)

    def refusal(self, *folder, error=UserError, **options):
        with pytest.raises(error) as raised:
            self.pack(*folder, **options)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    @property
    def packed(self):
        """The project with the pack in place of the folders."""
        return project_of(self.pack_folder, CLASSES, CLASSES * TRAIN, CLASSES * VAL)

    def shard(self, number=1, split="train"):
        return self.pack_folder / split / f"{number:06d}.tar"

    def images(self):
        return ImageFolder(self.pack_folder, "train", manifest.read(self.layout, "tiny")).samples

    def verify(self):
        """Return the first differences of the pack by verify and by check."""
        results = [verify.verify(self.packed, self.layout, "tiny", progress=None)]
        results.append(verify.check(self.packed, self.layout, "tiny"))
        return [[str(difference) for difference in result.differences.first] for result in results]


@pytest.fixture
def data(tmp_path):
    return Packable(tmp_path)


@pytest.fixture
def packed(data):
    data.pack()
    return data


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flip_bit(path, offset):
    """Flip a bit without changing size and times."""
    status = path.stat()
    changed = bytearray(path.read_bytes())
    changed[offset] ^= 1
    path.write_bytes(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def members(folder, split):
    """Return name and bytes of every member of every shard, as Python's tarfile reads them."""
    for path in sorted((folder / split).glob("*.tar")):
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                yield member.name, shard.extractfile(member).read()


def test_shards_have_the_webdataset_layout(packed):
    paths = sorted((packed.root / "train").rglob("*.JPEG"))
    expected = [
        entry
        for position, path in enumerate(paths)
        for key in [f"{path.parent.name}/{position:09d}"]
        for entry in [
            (f"{key}.jpg", path.read_bytes()),
            (f"{key}.cls", path.parent.name[1:].encode()),
        ]
    ]
    assert list(members(packed.pack_folder, "train")) == expected
    sizes = [path.stat().st_size for path in packed.pack_folder.rglob("*.tar")]
    assert len(sizes) > 4 and max(sizes) <= SHARD
    names = {path.name for path in packed.pack_folder.iterdir()}
    assert names == {
        "pack.json",
        *(f"{s}{e}" for s in ("train", "val") for e in ("", ".npy", ".txt")),
    }


def test_packing_is_deterministic(packed, tmp_path):
    before = content(packed.root)
    for path in packed.root.rglob("*.JPEG"):
        os.utime(path, (1, 1))
    packed.pack(tmp_path / "again", jobs=1)
    assert content(tmp_path / "again") == content(packed.pack_folder)
    assert content(packed.root) == before, "the originals are left alone"


def test_images_of_a_pack_are_those_of_the_folders_after_pickling_too(packed):
    folders = ImageFolder(packed.root, "train", packed.manifest).samples
    shutil.rmtree(packed.root)
    images = packed.images()
    copied = pickle.loads(pickle.dumps(images))
    assert len(images) == len(copied) == len(folders) == CLASSES * TRAIN
    for position, (path, label) in enumerate(folders):
        for reader in (images, copied):
            assert reader[position][1] == label
            assert f"entry {path.relative_to(packed.root)}" in str(reader[position][0])
    with pytest.raises(IndexError):
        images[len(images)]


def test_pixels_of_a_pack_equal_those_of_the_folders(packed):
    folders = ImageFolder(packed.root, "val", packed.manifest).samples
    images = ImageFolder(packed.pack_folder, "val", packed.manifest).samples
    for (path, _), (image, _) in zip(folders, images, strict=True):
        assert image.read() == path.read_bytes()
        assert np.array_equal(decode(image), decode(path))


def test_the_number_of_open_shards_is_limited(packed, monkeypatch):
    monkeypatch.setattr(index, "OPEN_SHARDS", 2)
    images = packed.images()

    def open_shards():
        files = psutil.Process().open_files()
        return sum(file.path.endswith(".tar") for file in files)

    assert open_shards() == 0
    read = [images[position][0].read() for position in [*range(12), *range(12)]]
    assert open_shards() == 2 and read[:12] == read[12:]
    del images
    assert open_shards() == 0


def test_the_manifest_of_a_pack_equals_that_of_the_folders(packed, tmp_path):
    """So runs on either have the same fingerprints."""
    shutil.rmtree(packed.root)
    own = Layout("demo", results=tmp_path / "other", data=tmp_path)
    written = manifest_writer.write(packed.packed, own, "tiny")
    assert written.digest == packed.manifest.digest
    assert content(own.manifests) == content(packed.layout.manifests)


def test_names_with_dots_spaces_and_unicode_are_packed(data):
    folder = data.root / "train" / "c1"
    folder = folder.rename(folder.with_name("c1 \u00e9" + 90 * "x"))
    (data.root / "val" / "c1").rename(data.root / "val" / folder.name)
    for old, new in (("000.JPEG", "a.b.jpg"), ("001.JPEG", "a.jpg"), ("002.JPEG", "a.PNG")):
        (folder / old).rename(folder / new)
    data.manifest = manifest_writer.write(data.project, data.layout, "tiny")
    data.pack()
    names = [name for name, _ in members(data.pack_folder, "train")]
    keys = [name.rpartition("/")[2].partition(".")[0] for name in names]
    assert len(set(keys)) == CLASSES * TRAIN and all(name.count(".") == 1 for name in names)
    assert sum(name.endswith(".png") for name in names) == 1
    assert data.verify() == [[], []]
    images, folders = data.images(), ImageFolder(data.root, "train", data.manifest).samples
    for (image, label), (path, expected) in zip(images, folders, strict=True):
        assert (image.read(), label) == (path.read_bytes(), expected)


def test_a_changed_byte_of_an_image_is_named_by_reading_and_verify(packed):
    entry = np.load(packed.pack_folder / "train.npy")[3]
    flip_bit(packed.shard(int(entry["shard"])), int(entry["offset"]) + 1000)
    path = packed.shard(int(entry["shard"]))
    with pytest.raises(DataError) as error:
        decode(packed.images()[3][0])
    assert f"{path}, entry train/c0/003.JPEG (its bytes are not those" in str(error.value)
    verified, checked = packed.verify()
    assert len(verified) == 1 and verified[0].startswith(f"changed     train/{path.name}")
    assert "other bytes in train/c0/003.JPEG" in verified[0] and not checked


def test_a_truncated_shard_is_named_by_reading_verify_and_the_dag(packed):
    path = packed.shard(1)
    path.write_bytes(path.read_bytes()[:4000])
    unreadable = [str(image) for image, _ in packed.images() if not readable(image)]
    assert unreadable and all(
        str(path) in image and "entry train/c" in image for image in unreadable
    )
    verified, checked = packed.verify()
    assert "cut off in or before train/c" in verified[0]
    assert "bytes, now 4000" in checked[0] and f"train/{path.name}" in checked[0]
    with pytest.raises(DataError, match=r"000001\.tar is changed .* smt data pack tiny --to"):
        validation_files.require_unchanged(packed.packed, packed.layout, "tiny")
    plan = dag.Plan(packed.packed, packed.layout, {})
    (phrase,) = plan.missing_data("tiny")
    assert str(path) in phrase and "now 4000" in phrase
    path.unlink()
    verified, checked = packed.verify()
    assert verified[0].startswith("missing     train/000001.tar")
    assert checked[0].startswith("missing     train/000001.tar")
    assert packed.pack(shard_size=None).stats == write.PackStats(
        written=1, kept=len(shards_of(packed)) - 1
    )
    assert packed.verify() == [[], []]


def readable(image):
    try:
        image.read()
    except DataError as error:
        assert "cut off" in str(error)
        return False
    return True


def shards_of(packed):
    return sorted(packed.pack_folder.rglob("*.tar"))


@pytest.mark.parametrize(
    ("offset", "difference"),
    [
        (0, "other bytes in the tar header or class of train/c0/000.JPEG"),
        (-1, "another end than a tar file has"),
    ],
)
def test_a_changed_byte_between_images_is_named_by_verify(packed, offset, difference):
    flip_bit(packed.shard(0), offset)
    assert difference in packed.verify()[0][0]


def test_a_damaged_index_and_list_are_named(packed):
    flip_bit(packed.pack_folder / "train.npy", 500)
    with pytest.raises(DataError, match=r"train\.npy is not the one that its pack names; .*pack"):
        packed.images()
    assert packed.verify()[1] == ["changed     train.npy  (not the index that pack.json names)"]
    assert "train.npy" in dag.Plan(packed.packed, packed.layout, {}).missing_data("tiny")[0]
    (packed.pack_folder / "train.npy").unlink()
    with pytest.raises(DataError, match=r"train\.npy cannot be read \(No such file"):
        packed.images()
    packed.pack()
    flip_bit(packed.pack_folder / "val.txt", 3)
    assert packed.verify()[0] == ["changed     val.txt  (other bytes)"]


@pytest.mark.parametrize(
    ("change", "expected_error"),
    [
        (lambda path: path.write_text(path.read_text().replace('"version": 1', '"version": 2')),
         r"pack\.json is of version 2 of the format, valid: 1; run smt data pack again"),
        (lambda path: path.write_text(path.read_text()[:300]),
         r"pack\.json is not the record of a pack \(.*; bring it back, or run smt data pack"),
        (lambda path: path.write_text("[]"), r"pack\.json is not the record of a pack"),
        (lambda path: path.rename(path.with_name("packing.json")), "a pack that is not finished"),
        (lambda path: (path.parent / "train" / "c0").mkdir(), "both a pack and folders, such as"),
    ],
)  # fmt: skip
def test_an_invalid_pack_record_is_refused_in_one_line(packed, change, expected_error):
    change(packed.pack_folder / "pack.json")
    with pytest.raises(DataError, match=expected_error) as error:
        packed.images()
    assert "\n" not in str(error.value)
    (phrase,) = dag.Plan(packed.packed, packed.layout, {}).missing_data("tiny")
    assert str(error.value) in phrase


def test_a_pack_of_other_images_than_the_manifest_is_refused(packed):
    (packed.root / "train" / "c1" / "000.JPEG").write_bytes(b"\xff\xd8 other")
    manifest_writer.write(packed.project, packed.layout, "tiny")
    with pytest.raises(DataError, match=r"is a pack of other images than .*tiny\.json"):
        packed.images()
    for (difference,) in packed.verify():
        assert difference.startswith("changed     train/c1/000.JPEG  (8 bytes, now")


def test_replace_writes_only_the_shards_of_changed_images(packed):
    inodes = {path: path.stat().st_ino for path in shards_of(packed)}
    last = packed.root / "train" / "c2" / "003.JPEG"
    last.write_bytes((packed.root / "val" / "c0" / "000.JPEG").read_bytes())
    manifest_writer.write(packed.project, packed.layout, "tiny")
    message = packed.refusal()
    assert (
        "is a pack of tiny as it was before: since then 1 changed, such as train/c2/003.JPEG"
        in message
    )
    assert "smt data pack tiny --replace" in message
    stats = packed.pack(replace=True).stats
    assert stats.written == 1 and stats.kept == len(inodes) - 1
    changed = [path for path in shards_of(packed) if path.stat().st_ino != inodes[path]]
    assert len(changed) == 1 and packed.verify() == [[], []]


def test_a_complete_pack_is_kept_and_another_shard_size_needs_replace(packed):
    before = content(packed.pack_folder)
    assert packed.pack().stats is None
    assert "of the same images in shards of another size" in packed.refusal(shard_size=2 * SHARD)
    shards = len(shards_of(packed))
    packed.pack(shard_size=2 * SHARD, replace=True)
    assert len(shards_of(packed)) < shards and packed.verify() == [[], []]
    packed.pack(replace=True)
    assert content(packed.pack_folder) == before


def test_valid_shards_of_an_interrupted_pack_are_kept(data, tmp_path):
    data.pack(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", data.pack_folder)
    (data.pack_folder / "pack.json").unlink()
    (data.pack_folder / "packing.json").write_text(f'{{"dataset": "tiny", "shard_size": {SHARD}}}')
    (data.pack_folder / "train" / ".000009.tar.tmp").write_bytes(b"half")
    (data.pack_folder / "train.npy").unlink()
    flip_bit(data.shard(0), 700)
    data.shard(1).unlink()
    inode = data.shard(2).stat().st_ino
    stats = data.pack(shard_size=None).stats  # the shard size is that of the interrupted pack
    assert stats.written == 2 and data.shard(2).stat().st_ino == inode
    assert content(data.pack_folder) == content(tmp_path / "whole")


def test_an_image_changed_since_its_manifest_is_named_and_nothing_is_packed(data):
    threads = threading.active_count()
    path = data.root / "train" / "c2" / "001.JPEG"
    flip_bit(path, 900)
    message = data.refusal(error=DataError)
    assert f"{path} has changed since its manifest was made" in message
    assert not (data.pack_folder / "pack.json").exists()
    assert not list(data.pack_folder.rglob(".*.tmp"))
    path.write_bytes(b"longer" * 1000)
    message = data.refusal(error=DataError)
    assert "changed train/c2/001.JPEG" in message and "smt data manifest tiny" in message
    assert threading.active_count() == threads


def test_invalid_target_folders_are_refused_before_writing(data, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert "holds other things, such as notes.txt; give a folder that is empty" in data.refusal(
        other
    )
    assert "is a file" in data.refusal(other / "notes.txt")
    assert "which is left as it is" in data.refusal(data.root / "train" / "packed")
    full = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert "0.0 GB free; free some space, or give another folder: --to" in data.refusal()
    assert list(other.iterdir()) == [other / "notes.txt"] and not data.pack_folder.exists()


def test_only_unpacked_data_sets_of_imagenets_layout_can_be_packed(packed):
    project, layout = project_at("paper"), packed.layout
    with pytest.raises(
        UserError, match=r"coco cannot be packed: .* valid: imagenet1k, imagenet22k$"
    ):
        pack.require_packable(project, layout, "coco")
    with pytest.raises(UserError, match="did you mean imagenet22k"):
        pack.require_packable(project, layout, "imagenet22")
    with pytest.raises(UserError, match=r"tiny is packed already: .*datasets\.tiny\.root"):
        pack.require_packable(packed.packed, layout, "tiny")


def test_a_pack_of_another_data_set_is_not_overwritten(packed):
    path = packed.pack_folder / "pack.json"
    path.write_text(path.read_text().replace('"dataset": "tiny"', '"dataset": "huge"'))
    assert "holds a pack of huge, not of tiny" in packed.refusal()


def test_a_folder_in_use_by_another_process_is_refused(data):
    data.pack_folder.mkdir()
    with write._claimed(data.pack_folder, "tiny", SHARD):
        assert "another process packs into it" in data.refusal()


def test_a_pack_of_other_counts_than_params_is_refused(packed, tmp_path):
    project = project_of(packed.pack_folder, CLASSES, CLASSES * TRAIN + 1, CLASSES * VAL)
    with pytest.raises(DataError, match=r"is a pack of 3 classes .* params say .*13.*\(counted\)"):
        manifest_writer.write(
            project, Layout("demo", results=tmp_path / "r", data=tmp_path), "tiny"
        )


def test_an_undecodable_validation_image_is_refused(data, tmp_path):
    path = data.root / "val" / "c1" / "001.JPEG"
    manifest_file = manifest.manifest_path(data.layout, "tiny")
    path.write_bytes(path.read_bytes()[:300])
    lines = manifest_file.with_name("tiny.val.txt").read_text().splitlines()
    lines[3] = f"val/c1/001.JPEG\t300\t{hashlib.sha256(path.read_bytes()).hexdigest()}"
    text = "".join(f"{line}\n" for line in lines)
    manifest_file.with_name("tiny.val.txt").write_text(text)
    changed = json.loads(manifest_file.read_text())
    changed["splits"]["val"]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    manifest_file.write_text(json.dumps(changed))
    data.pack()
    other = Layout("demo", results=tmp_path / "other", data=tmp_path)
    with pytest.raises(DataError, match=r"val/.*val/c1/001\.JPEG cannot be decoded"):
        manifest_writer.write(data.packed, other, "tiny")
