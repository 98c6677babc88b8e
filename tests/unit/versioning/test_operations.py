"""Which runs `smt dvc record` records, and the index that DVC's stages depend on."""

import json

import pytest

from smt.cluster import states
from smt.config.experiments import Run
from smt.errors import UserError
from smt.versioning.operations import done_runs, write_index
from tests.helpers.run_files import RunFiles, S, T

TINY, SMALL = Run(experiment=T, seed=0), Run(experiment=S, seed=0)


def recorded(files):
    """Return the metrics of the runs that are recorded."""
    run_states = states.read(files.project, files.layout)
    metrics, damages = done_runs(files.project, files.layout, run_states)
    assert not damages
    return metrics


@pytest.fixture
def files(tmp_path):
    """Two runs that are done."""
    files = RunFiles(tmp_path)
    for run in (TINY, SMALL):
        files.finish(run)
        files.layout.weights(run).touch()
    return files


def test_a_run_without_weights_or_of_other_params_is_not_recorded(files):
    assert list(recorded(files)) == [TINY, SMALL]
    files.layout.weights(SMALL).unlink()
    assert list(recorded(files)) == [TINY]
    files.change("scales.yaml", 0.5, "demo", "recipes", "imagenet1k", "optimizer", "lr")
    assert list(recorded(files)) == []


def test_the_index_has_an_entry_of_each_recorded_run_and_no_other(files):
    metrics = recorded(files)
    write_index(files.layout, metrics)
    entry = json.loads((files.layout.index / f"{T}-seed0.json").read_text())
    assert entry == {"experiment": T, "seed": 0, "fingerprint": metrics[TINY].fingerprint}
    write_index(files.layout, {SMALL: metrics[SMALL]})
    assert [path.name for path in files.layout.index.iterdir()] == [f"{S}-seed0.json"]


def test_an_entry_is_written_only_if_it_changes(files):
    """Else DVC and Snakemake would take it for a new one."""
    metrics = recorded(files)
    write_index(files.layout, metrics)
    before = files.layout.index_entry(TINY).stat().st_ino
    other = metrics[SMALL].model_copy(update={"fingerprint": "f" * 64})
    write_index(files.layout, {TINY: metrics[TINY], SMALL: other})
    assert files.layout.index_entry(TINY).stat().st_ino == before
    assert "f" * 64 in files.layout.index_entry(SMALL).read_text()


def test_a_directory_in_place_of_an_old_entry_is_named(files):
    (files.layout.index / "old.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"index/old\.json: .*; remove it and run the same command"):
        write_index(files.layout, recorded(files))
