"""What has changed since an unfinished run was interrupted: params, environment."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smt.runs import provenance, record
from smt.runs.checkpoint_files import CheckpointName, checkpoints
from smt.runs.record import Environment, Provenance


def param_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one phrase for each value of the fingerprint's content that differs now."""
    old, new = dict(provenance.flatten(then)), dict(provenance.flatten(now))
    return [
        f"{key} {_short(old.get(key))} -> {_short(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text  # a digest


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that began with other params and was interrupted."""

    work_dir: Path
    provenance: Provenance
    step: int
    """Of its newest checkpoint."""


def unfinished_run(run_dir: Path, own: Path) -> UnfinishedRun | None:
    """Return the last run in `run_dir` other than `own` that was interrupted, not ended."""
    others = []
    for work_dir in run_dir.glob("work-*"):
        begun, saved = record.read_provenance(work_dir), checkpoints(work_dir)
        # Not told by metrics.json: Snakemake has deleted it when a run is about to be made anew.
        if work_dir == own or not saved or begun is None or begun.attempts[-1].ended is not None:
            continue
        newest = CheckpointName.of(saved[0])
        if newest.step and not begun.given_up and not _is_final(work_dir):
            others.append(UnfinishedRun(work_dir, begun, newest.step))
    return max(others, key=lambda other: other.provenance.attempts[-1].started, default=None)


def _is_final(work_dir: Path) -> bool:
    """Return whether the last attempt failed in a way that going on would repeat."""
    failure = record.read_failure(work_dir)
    return failure is not None and failure.step is not None


_ORDER = (
    "the same images with the same augmentation make up the same steps, but sums are added in "
    "another order, so that weights will differ in their last bits from those of a run that was "
    "not interrupted"
)


def environment_changes(then: Environment, now: Environment) -> Iterator[str]:
    """Yield a sentence for each thing of the machine that changes the order of sums."""
    for key, unit in (
        ("world_size", "processes"),
        ("threads", "threads a process"),
        ("device", "as device"),
        ("processor", "as processor"),
        ("driver", "as the GPU's driver"),
        ("cuda", "as CUDA"),
        ("cudnn", "as cuDNN"),
        ("nccl", "as NCCL"),
    ):
        old, new = getattr(then, key), getattr(now, key)
        if old != new and None not in (old, new):
            extra = "; BatchNorm's running statistics are averaged over processes"
            more = extra if key == "world_size" else ""
            yield f"{new} {unit} instead of {old}: {_ORDER}{more}"
    if then.compiled != now.compiled:
        yield f"blocks {'' if now.compiled else 'not '}compiled, unlike before: {_ORDER}"
