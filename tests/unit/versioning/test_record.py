"""Which runs DVC takes in."""

from smt.cluster import states
from smt.config.experiments import Run
from smt.versioning.record import done_runs
from tests.helpers.run_files import RunFiles, T


def recorded(files):
    """Return the runs that DVC takes in."""
    done, damages = done_runs(files.project, files.layout, states.read(files.project, files.layout))
    assert not damages
    return list(done)


def test_runs_of_other_params_are_not_among_those_that_are_done(tmp_path):
    files, run = RunFiles(tmp_path), Run(experiment=T, seed=0)
    files.finish(run)
    assert recorded(files) == []  # there are no weights
    files.layout.weights(run).touch()
    assert recorded(files) == [run]
    files.change("scales.yaml", 0.5, "demo", "recipes", "imagenet1k", "optimizer", "lr")
    assert recorded(files) == []
