"""`smt look` on a run of this project, whose data set has the images."""

import json

from smt.runs.atomic import sha256
from tests.helpers.trainings import RUN_OF_DEMO, smt

WEIGHTS = f"results/demo/runs/{RUN_OF_DEMO}/seed0/model.safetensors"


def test_without_images_it_takes_validation_images_of_the_runs_data_set(trained, tmp_path):
    done = smt(trained, "look", WEIGHTS, "-o", str(tmp_path / "out"), "--format", "svg")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "pictures.json").read_text())
    assert record["weights_sha256"] == sha256(trained / WEIGHTS)
    assert (record["images"], record["resolution"], len(record["files"])) == (16, 32, 4)
    for name in record["files"]:
        assert "<image" in (tmp_path / "out" / name).read_text()
