"""Which runs DVC takes in."""

from smt.config.experiments import Run
from smt.versioning.record import done_runs
from tests.helpers.run_files import RunFiles, T


def test_runs_of_other_params_are_not_among_those_that_are_done(tmp_path):
    files, run = RunFiles(tmp_path), Run(experiment=T, seed=0)
    files.finish(run)
    assert list(done_runs(files.project, files.layout)[0]) == []  # there are no weights
    files.layout.weights(run).touch()
    assert list(done_runs(files.project, files.layout)[0]) == [run]
    files.change("scales.yaml", 0.5, "demo", "recipes", "imagenet1k", "optimizer", "lr")
    assert list(done_runs(files.project, files.layout)[0]) == []
