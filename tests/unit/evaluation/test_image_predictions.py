"""The file of a classifier's predictions: it grows, survives a cut, and holds nothing else."""

from contextlib import closing

import pytest

from smt.errors import DataError
from smt.evaluation.image_predictions import ImagePrediction, PredictionFile

IMAGES = ["cat/1.JPEG", "dog, big/2.JPEG", "cat/3.JPEG"]
ROWS = [
    ImagePrediction(IMAGES[0], 0, (2, 0, 1), 0.0),
    ImagePrediction(IMAGES[1], 1, (2, 1, 0), 0.1),
    ImagePrediction(IMAGES[2], 2, (2, 1, 0), 1 / 3),
]


def written(path, rows):
    with closing(PredictionFile(path, IMAGES)) as file:
        file.append(rows)


def read(path, images=IMAGES):
    with closing(PredictionFile(path, images)) as file:
        return file.rows


def test_what_is_added_is_read_again(tmp_path):
    path = tmp_path / "folder" / "predictions.csv"
    written(path, ROWS[:2])
    written(path, ROWS[2:])
    assert read(path) == ROWS


def test_columns_and_hits(tmp_path):
    with closing(PredictionFile(tmp_path / "predictions.csv", IMAGES)) as file:
        assert file.columns(0).hits(1) == 0
        file.append(ROWS)
        columns = file.columns(3)
    assert columns.labels.tolist() == [0, 1, 2]
    assert (columns.hits(1), columns.hits(2), columns.hits(5)) == (1, 3, 3)
    assert columns.losses.tolist() == [0.0, 0.1, 1 / 3]


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "predictions.csv"
    written(path, ROWS)
    path.write_bytes(path.read_bytes()[:-4])
    assert read(path) == ROWS[:2]
    written(path, ROWS[2:])
    assert read(path) == ROWS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image;label\n", "line 1 is not image,label,best,loss"),
        ("image,label,best,loss\ncat/1.JPEG,0,1 2\n", "line 2 is no prediction"),
        ("image,label,best,loss\ncat/1.JPEG,zero,1 2,0.1\n", "line 2 is no prediction"),
        ("image,label,best,loss\ncat/3.JPEG,0,1 2,0.1\n", "line 2 is of cat/3.JPEG, another"),
    ],
)
def test_another_content_is_one_line(tmp_path, content, words):
    path = tmp_path / "predictions.csv"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(str(path)) and words in message and "remove it" in message
    assert path.read_text() == content


def test_more_images_than_there_are_is_one_line(tmp_path):
    path = tmp_path / "predictions.csv"
    written(path, ROWS)
    with pytest.raises(DataError, match=r"line 4 is of cat/3\.JPEG, another image"):
        read(path, IMAGES[:2])
