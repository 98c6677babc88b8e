"""What DVC keeps of a run, and taking in what Snakemake has made."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from smt.cluster import states
from smt.cluster.states import States
from smt.config.experiments import Run
from smt.config.project import Project
from smt.datasets import manifest
from smt.errors import TrainingError
from smt.runs import journal, provenance
from smt.runs.atomic import read_json, replacing, write_json
from smt.runs.paths import Layout
from smt.runs.record import PROVENANCE, DamagedRecord, RunMetrics, read_evaluation, read_metrics
from smt.runs.state import State, counts
from smt.versioning import stages
from smt.versioning.dvc import commit, dvc, require_repository, smt, snakemake

KEPT = (journal.JOURNAL, journal.TIMES, PROVENANCE, provenance.LOG)
"""Files of a work folder that DVC keeps; checkpoints of a finished run are not among them."""


def write_stages(project: Project, layout: Layout) -> bool:
    """Bring `dvc.yaml` up to the params of a scale; return whether it was another one."""
    path, text = Path(stages.FILE), stages.text(project, layout)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    with replacing(path) as file:
        file.write(text.encode())
    return True


def done_runs(
    project: Project, layout: Layout, every: States
) -> tuple[dict[Run, RunMetrics], list[DamagedRecord]]:
    """Return the runs that are done, evaluated, and have their files.

    What is wrong with records that cannot be read comes second.
    """
    done: dict[Run, RunMetrics] = {}
    damages = list(every.damages)
    for run, each in every.items():
        try:
            if each.final is not None and each.is_confirmed and _has_files(project, layout, run):
                done[run] = each.final
        except DamagedRecord as damage:
            damages.append(damage)
    return done, damages


def _has_files(project: Project, layout: Layout, run: Run) -> bool:
    """Return whether a run that is done has been evaluated, and all that belongs to it is there."""
    final, evaluation = read_metrics(layout, run), read_evaluation(layout, run)
    return (
        final is not None
        and evaluation is not None
        and final.fingerprint == evaluation.fingerprint
        and layout.weights(run).exists()
        and (project.experiments[run.experiment].head is None or layout.samples(run).exists())
    )


def keep(layout: Layout, run: Run, final: RunMetrics) -> None:
    """Copy what DVC keeps of a finished run's work folder; a copy that is right already stays.

    After a restore there may be the copy alone: then the work folder is made of it.
    """
    work_dir, copy = layout.work_dir(run, final.fingerprint), layout.record(run)
    if not work_dir.exists():
        _copy(copy, work_dir, [each.name for each in copy.iterdir() if _is_kept(each)])
        return
    kept = [each.name for each in sorted(work_dir.iterdir()) if _is_kept(each)]
    _copy(work_dir, copy, kept)
    with_curves = {*kept, stages.CURVES}
    for old in copy.iterdir():
        if old.name not in with_curves:
            old.unlink()
    _replace(copy / stages.CURVES, _curves(work_dir, final.task).encode())


def _is_kept(file: Path) -> bool:
    return file.name in KEPT or file.suffix == ".diff"


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        _replace(target / name, (source / name).read_bytes())


def _replace(path: Path, content: bytes) -> None:
    # Never written into: the file may be one with DVC's own copy.
    if not path.exists() or path.read_bytes() != content:
        with replacing(path) as file:
            file.write(content)


CURVES_OF = {
    "classify": ("loss", "top1", "top5"),
    "detect": ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"),
    "segment": ("miou", "mean_accuracy", "pixel_accuracy"),
}
"""What is evaluated after each epoch and drawn, by task."""


def _curves(work_dir: Path, task: str) -> str:
    """Return a run's curves, a line for each whole epoch: losses, and the rest in percent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("epoch", "step", "train_loss", *CURVES_OF[task]))
    last, loss = 0, ""
    for line in journal.read(work_dir, 0):
        loss = str(line.metrics.get("train/loss", loss))
        if line.epoch > last:
            last = line.epoch
            names = [f"eval/{name}" for name in CURVES_OF[task]]
            writer.writerow((last, line.step, loss, *(line.metrics.get(n, "") for n in names)))
    return text.getvalue()


def write_index(layout: Layout, runs: Mapping[Run, RunMetrics]) -> None:
    """Say which run is which: a small file for each of these, and for no others."""
    wanted = {f"{run}.json": final for run, final in runs.items()}
    layout.index.mkdir(parents=True, exist_ok=True)
    for old in layout.index.iterdir():
        if old.name not in wanted:
            old.unlink()
    for name, final in wanted.items():
        content = {key: getattr(final, key) for key in ("experiment", "seed", "fingerprint")}
        if read_json(layout.index / name) != content:
            write_json(layout.index / name, content)


class Recorded(NamedTuple):
    """What was taken in."""

    runs: int
    complete: bool
    """Whether that is all of the scale."""
    rewritten: bool
    """Whether `dvc.yaml` was written anew."""
    others: dict[State, int]
    """How the runs stand that were left out; one that is done lacks its evaluation."""
    damages: list[DamagedRecord]
    """What is wrong with records that cannot be read."""


def record(project: Project, layout: Layout) -> Recorded:
    """Take in what Snakemake has made: runs that are done, and if all are, everything else.

    Nothing is run. Stopped anywhere, the same command goes on.
    """
    require_repository(layout)
    rewritten = write_stages(project, layout)
    every = states.read(project, layout)
    done, damages = done_runs(project, layout, every)
    complete = len(done) == len(project.runs) and all(
        each.exists() for each in layout.derived_outputs
    )
    for run, final in done.items():
        keep(layout, run, final)
    write_index(layout, done)
    targets = [stages.run_stage(project, run) for run in done]
    if complete:
        targets += [stages.DATA, stages.DAG, stages.TABLES]
    if targets:
        commit(targets)
    others = counts(each.state for run, each in every.items() if run not in done)
    return Recorded(len(done), complete, rewritten, others, damages)


def make_dag(project: Project, layout: Layout) -> None:
    """Run the DAG, and say which run is which: the command of DVC's stage `dag`."""
    profile = stages.profile(project)
    snakemake(["--profile", profile, "all", "--config", f"scale={layout.scale}"])
    done, _ = done_runs(project, layout, states.read(project, layout))
    write_index(layout, done)


def make_run(project: Project, layout: Layout, run: Run) -> None:
    """Take in a run that the DAG has made: the command of a run's stage.

    Raises:
        TrainingError: the DAG has not made it.
        DamagedRecord: its numbers or its evaluation cannot be read.
    """
    known = states.read(project, layout)[run]
    if not known.is_confirmed or known.final is None:
        raise TrainingError(f"{run} is {known.state}; run: dvc repro {stages.DAG}")
    if not _has_files(project, layout, run):
        raise TrainingError(f"{run} is not evaluated; run: dvc repro {stages.DAG}")
    keep(layout, run, known.final)


def restore(
    project: Project, layout: Layout, experiments: Sequence[str]
) -> tuple[list[Run], list[DamagedRecord]]:
    """Pull what DVC has of these experiments, or everything, so that Snakemake agrees.

    Demo data, which are in no remote, are made again; work folders are made of what was kept of
    them; Snakemake is told what is there. Returns the runs that are there, and what is wrong with
    records that cannot be read.
    """
    require_repository(layout)
    chosen = [run for run in project.runs if not experiments or run.experiment in experiments]
    targets = [stages.run_stage(project, run) for run in chosen]
    dvc("pull", *([stages.DATA, *targets] if experiments else []))
    for key in manifest.keys_in_use(project):
        _make_data_again(project, layout, key)
    finals, damages = done_runs(project, layout, states.read(project, layout))
    done = [run for run in chosen if run in finals]
    for run in done:
        keep(layout, run, finals[run])
    complete = not experiments and len(done) == len(project.runs)
    files = ["all"] if complete else [str(layout.evaluation(run)) for run in done]
    if files:
        scale = f"scale={layout.scale}"
        snakemake(["--cores", "1", "--quiet", "all", "--touch", *files, "--config", scale])
    return done, damages


def _make_data_again(project: Project, layout: Layout, key: str) -> None:
    if manifest.make_command(project, key) is None:
        return
    smt("data", "make", key, "--scale", layout.scale)
    layout.made(manifest.manifest_path(layout, key).stem).touch()
