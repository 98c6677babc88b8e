"""What `smt dvc` does: record the outputs of Snakemake, make a stage's outputs, restore."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from smt.cluster import states
from smt.cluster.states import States
from smt.config.experiments import Run
from smt.config.project import Project
from smt.datasets import manifest
from smt.errors import TrainingError
from smt.runs import record as records
from smt.runs import shared_folder
from smt.runs.atomic import RESULTS_REMEDY, explained, replacing
from smt.runs.paths import Layout
from smt.runs.record import DamagedRecord, IndexEntry, RunMetrics
from smt.runs.state import State, counts
from smt.versioning import stages
from smt.versioning.archive import archive_run
from smt.versioning.dvc import commit, dvc, require_repository, smt, snakemake


def write_stages(project: Project, layout: Layout) -> bool:
    """Write `dvc.yaml` for the params of a scale; return whether its content has changed."""
    path, text = Path(stages.FILE), stages.text(project, layout)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    with replacing(path) as file:
        file.write(text.encode())
    return True


def done_runs(
    project: Project, layout: Layout, run_states: States
) -> tuple[dict[Run, RunMetrics], list[DamagedRecord]]:
    """Return the metrics of each run that is done and evaluated and whose outputs all exist.

    The second value is the errors of records that cannot be read.
    """
    metrics: dict[Run, RunMetrics] = {}
    damages = list(run_states.damages)
    for run, run_state in run_states.items():
        final = run_state.final
        try:
            if run_state.is_confirmed and final and _is_evaluated(project, layout, run, final):
                metrics[run] = final
        except DamagedRecord as damage:
            damages.append(damage)
    return metrics, damages


def _is_evaluated(project: Project, layout: Layout, run: Run, metrics: RunMetrics) -> bool:
    """Return whether a run that is done has been evaluated and all of its outputs exist."""
    evaluation = records.read_evaluation(layout, run)
    return (
        evaluation is not None
        and metrics.fingerprint == evaluation.fingerprint
        and shared_folder.exists(layout.weights(run))
        and (
            project.experiments[run.experiment].head is None
            or shared_folder.exists(layout.samples(run))
        )
    )


def write_index(layout: Layout, metrics: Mapping[Run, RunMetrics]) -> None:
    """Write the index entry of each of these runs, and remove those of all others.

    Raises:
        DamagedRecord: an entry cannot be read.
        UserError: the folder cannot be written.
    """
    with explained(layout.index, RESULTS_REMEDY):
        layout.index.mkdir(parents=True, exist_ok=True)
    for path in set(layout.index.iterdir()) - set(map(layout.index_entry, metrics)):
        with explained(path, "remove it and run the same command again"):
            path.unlink()
    for run, final in metrics.items():
        entry = IndexEntry(
            experiment=final.experiment, seed=final.seed, fingerprint=final.fingerprint
        )
        if records.read_index_entry(layout, run) != entry:
            with explained(layout.index_entry(run), RESULTS_REMEDY):
                records.write(layout.index_entry(run), entry)


class RecordSummary(NamedTuple):
    """What `smt dvc record` has recorded."""

    runs: int
    is_complete: bool
    """Whether that is everything of the scale."""
    is_new_pipeline: bool
    """Whether `dvc.yaml` has changed."""
    other_states: dict[State, int]
    """Number of runs that were left out, by state; one that is done lacks its evaluation."""
    damages: list[DamagedRecord]
    """Errors of records that cannot be read."""


def record(project: Project, layout: Layout) -> RecordSummary:
    """Commit to DVC what Snakemake has made: the runs that are done; with all runs, everything.

    Nothing is run. After an interruption the same command continues.
    """
    require_repository(layout)
    is_new_pipeline = write_stages(project, layout)
    run_states = states.read(project, layout)
    metrics, damages = done_runs(project, layout, run_states)
    is_complete = len(metrics) == len(project.runs) and all(
        shared_folder.exists(path) for path in layout.derived_outputs
    )
    write_index(layout, metrics)
    for run, final in metrics.items():
        archive_run(layout, run, final)
    targets = [stages.run_stage(project, run) for run in metrics]
    if is_complete:
        targets += [stages.DATA, stages.DAG, stages.TABLES]
    if targets:
        commit(targets)
    other_states = counts(
        run_state.state for run, run_state in run_states.items() if run not in metrics
    )
    return RecordSummary(len(metrics), is_complete, is_new_pipeline, other_states, damages)


def make_dag(project: Project, layout: Layout) -> None:
    """Run the whole DAG and write the index: the command of DVC's stage `dag`."""
    profile = stages.profile(project)
    snakemake(["--profile", profile, "all", "--config", f"scale={layout.scale}"])
    metrics, _ = done_runs(project, layout, states.read(project, layout))
    write_index(layout, metrics)


def make_run(project: Project, layout: Layout, run: Run) -> None:
    """Archive a run that the DAG has made: the command of a run's stage.

    Raises:
        TrainingError: the DAG has not made it.
        DamagedRecord: its metrics or its evaluation cannot be read.
    """
    run_state = states.read(project, layout)[run]
    if not run_state.is_confirmed or run_state.final is None:
        raise TrainingError(f"{run} is {run_state.state}; run: dvc repro {stages.DAG}")
    if not _is_evaluated(project, layout, run, run_state.final):
        raise TrainingError(f"{run} is not evaluated; run: dvc repro {stages.DAG}")
    archive_run(layout, run, run_state.final)


def restore(
    project: Project, layout: Layout, experiments: Sequence[str]
) -> tuple[list[Run], list[DamagedRecord]]:
    """Pull these experiments from DVC's remote, or everything, so that Snakemake agrees.

    Demo data are in no remote and are made again. Work folders are restored from the archived
    files, and Snakemake's outputs are touched. Returns the restored runs, and the errors of
    records that cannot be read.
    """
    require_repository(layout)
    runs = [run for run in project.runs if not experiments or run.experiment in experiments]
    targets = [stages.run_stage(project, run) for run in runs]
    dvc("pull", *([stages.DATA, *targets] if experiments else []))
    for key in manifest.keys_in_use(project):
        _make_demo_data(project, layout, key)
    metrics, damages = done_runs(project, layout, states.read(project, layout))
    restored = [run for run in runs if run in metrics]
    for run in restored:
        archive_run(layout, run, metrics[run])
    is_complete = not experiments and len(restored) == len(project.runs)
    files = ["all"] if is_complete else [str(layout.evaluation(run)) for run in restored]
    if files:
        scale = f"scale={layout.scale}"
        snakemake(["--cores", "1", "--quiet", "all", "--touch", *files, "--config", scale])
    return restored, damages


def _make_demo_data(project: Project, layout: Layout, key: str) -> None:
    if manifest.make_command(project, key) is None:
        return
    smt("data", "make", key, "--scale", layout.scale)
    layout.made(manifest.manifest_path(layout, key).stem).touch()
