"""Records of runs: reading and writing one again gives the same bytes."""

import json

import pytest

from smt.config.experiments import Run
from smt.runs import record
from smt.runs.record import DamagedRecord, Provenance, RunMetrics
from tests.helpers.run_files import PARENT, RunFiles, T

RUN = Run(experiment=T, seed=0)


@pytest.fixture
def files(tmp_path):
    files = RunFiles(tmp_path)
    files.finish(RUN)
    files.finish(Run(experiment=PARENT, seed=0), 1.0)
    return files


def test_a_record_round_trip_gives_the_same_bytes(files):
    work_dir = files.work_dir(RUN)
    for value, path in (
        (record.read_metrics(files.layout, RUN), files.layout.metrics(RUN)),
        (record.read_evaluation(files.layout, RUN), files.layout.evaluation(RUN)),
        (record.read_provenance(work_dir), work_dir / record.PROVENANCE),
    ):
        before = path.read_bytes()
        record.write(path, value)
        assert path.read_bytes() == before


def test_unknown_keys_are_kept(files):
    path = files.work_dir(RUN) / record.PROVENANCE
    content = json.loads(path.read_text())
    content["later"] = {"a": [1, None]}
    content["attempts"][0]["later"] = "too"
    path.write_text(json.dumps(content))
    record.write(path, record.read_provenance(path.parent))
    assert json.loads(path.read_text()) == content


def test_numbers_that_are_not_finite_are_kept(files):
    path = files.layout.metrics(RUN)
    text = path.read_text().replace('"loss": ', '"worst": -Infinity, "none": NaN, "loss": ', 1)
    path.write_text(text)
    final = record.read_metrics(files.layout, RUN)
    assert (
        final.metrics["worst"] == float("-inf") and final.metrics["none"] != final.metrics["none"]
    )
    record.write(path, final)
    assert '"none": NaN' in path.read_text() and '"worst": -Infinity' in path.read_text()


def test_keys_that_old_records_lack_have_defaults(files):
    final = record.read_metrics(files.layout, RUN)
    assert final.journal is None and final.changes == () and "journal" not in final.as_json()


@pytest.mark.parametrize(("kind", "key"), [(RunMetrics, "seed"), (Provenance, "created")])
def test_a_number_written_as_text_is_an_error(files, kind, key):
    final = kind is RunMetrics
    path = files.layout.metrics(RUN) if final else files.work_dir(RUN) / record.PROVENANCE
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, key: "0"}))
    with pytest.raises(DamagedRecord, match=f"{path}: {key}: should be a valid (integer|number); "):
        record.read(kind, path, "train it again")


def test_a_record_without_read_permission_is_not_called_damaged(files, monkeypatch):
    def refuse(self):
        raise PermissionError

    monkeypatch.setattr(type(files.layout.metrics(RUN)), "read_bytes", refuse)
    with pytest.raises(DamagedRecord, match="no permission to read it; run: chmod u\\+r "):
        record.read_metrics(files.layout, RUN)
