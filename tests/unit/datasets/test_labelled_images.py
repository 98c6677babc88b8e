"""A folder of images a class, listed for an evaluation: class numbers and bad input."""

import hashlib

import pytest

from smt.datasets.labelled_images import images_of
from smt.errors import UserError


def folder(root, content):
    """Make class folders with files of one byte each."""
    for name, files in content.items():
        (root / name).mkdir(parents=True)
        for file in files:
            (root / name / file).write_bytes(b"x")
    return root


@pytest.fixture
def animals(tmp_path):
    return folder(tmp_path / "animals", {"dog": ["b.JPEG", "a.png"], "cat": ["1.jpg", "note.txt"]})


def listed(images):
    return [(images.name(index), images.samples[index][1]) for index in range(len(images))]


def test_classes_are_numbered_as_their_folders_are_sorted(animals):
    images = images_of(animals, None)
    assert images.classes == ("cat", "dog")
    assert listed(images) == [("cat/1.jpg", 0), ("dog/a.png", 1), ("dog/b.JPEG", 1)]
    lines = b"cat/1.jpg\t1\ndog/a.png\t1\ndog/b.JPEG\t1\n"
    assert (images.digest, images.content) == (
        hashlib.sha256(lines).hexdigest(), "names and sizes"
    )  # fmt: skip


def test_val_in_a_folder_is_taken(tmp_path, animals):
    (tmp_path / "root").mkdir()
    animals.rename(tmp_path / "root" / "val")
    images = images_of(tmp_path / "root", None)
    assert images.root == tmp_path / "root" / "val" and len(images) == 3


def test_a_file_of_labels_numbers_the_classes_and_may_name_others(tmp_path, animals):
    labels = tmp_path / "labels.txt"
    labels.write_text("dog domestic dog, Canis\nfish\ncat tabby\n")
    images = images_of(animals, labels)
    assert images.classes == ("dog", "fish", "cat")
    assert listed(images) == [("cat/1.jpg", 2), ("dog/a.png", 0), ("dog/b.JPEG", 0)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("cannot be read", "No such file")),
        ("", ("is empty",)),
        ("dog\n\ncat\n", ("line 2 is empty",)),
        ("dog\ncat\ndog\n", ("line 3 repeats dog of line 1",)),
        ("dog\nfish\n", ("class folders that", "does not name: cat")),
    ],
)
def test_a_wrong_file_of_labels_is_one_line(tmp_path, animals, text, words):
    labels = tmp_path / "labels.txt"
    if text is not None:
        labels.write_text(text)
    with pytest.raises(UserError) as error:
        images_of(animals, labels)
    message = str(error.value)
    assert "\n" not in message and str(labels) in message and "--labels" in message
    assert all(word in message for word in words), message


def test_folders_called_by_numbers_have_to_be_sorted_by_hand(tmp_path):
    numbered = folder(tmp_path / "n", {str(number): ["1.jpg"] for number in range(11)})
    with pytest.raises(UserError, match=r"called by numbers, and sorted as text 10 .* --labels"):
        images_of(numbered, None)
    padded = folder(tmp_path / "p", {f"{number:02}": ["1.jpg"] for number in range(11)})
    assert [label for _, label in images_of(padded, None).samples] == list(range(11))
    few = folder(tmp_path / "few", {str(number): ["1.jpg"] for number in range(10)})
    assert images_of(few, None).classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no folder"),
        ({}, "no class folders"),
        ({"cat": ["1.jpg"], "dog": []}, "dog has no images; copy them again"),
        (
            {"train/cat": ["1.jpg"], "train/dog": ["1.jpg"]},
            "train has no images, but folders such as cat; give the one that holds",
        ),
    ],
)
def test_a_folder_without_images_is_one_line(tmp_path, content, words):
    root = tmp_path / "images"
    if content is not None:
        folder(root, content)
        root.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=words):
        images_of(root, None)


def test_an_empty_image_is_one_line(animals):
    (animals / "dog" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"dog/a\.png cannot be read \(a file of 0 bytes\)"):
        images_of(animals, None)
