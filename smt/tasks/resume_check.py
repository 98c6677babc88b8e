"""What has changed since an unfinished run was interrupted: params, environment."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smt.engine import checkpoint
from smt.runs import provenance
from smt.runs.atomic import read_json


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
    provenance: Mapping[str, Any]
    step: int
    """Of its newest checkpoint."""


def unfinished_run(run_dir: Path, own: Path) -> UnfinishedRun | None:
    """Return the last run in `run_dir` other than `own` that was interrupted, not ended."""
    candidates = []
    for path in run_dir.glob(f"work-*/{provenance.PROVENANCE}"):
        record, saved = read_json(path), checkpoint.names(path.parent / checkpoint.FOLDER)
        # metrics.json does not tell: Snakemake deletes outputs before it runs a job again.
        if path.parent == own or not saved or "ended" in record["attempts"][-1]:
            continue
        newest = checkpoint.Name.of(saved[0])
        assert newest is not None
        if newest.step and not record.get("given_up") and not provenance.is_final(path.parent):
            candidates.append(UnfinishedRun(path.parent, record, newest.step))
    return max(
        candidates,
        key=lambda candidate: candidate.provenance["attempts"][-1]["started"],
        default=None,
    )


_ORDER = (
    "the same images with the same augmentation make up the same steps, but sums are added in "
    "another order, so that weights will differ in their last bits from those of a run that was "
    "not interrupted"
)


def environment_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each difference of the environment that changes the order of sums."""
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
        if key in then and key in now and then[key] != now[key]:
            extra = "; BatchNorm's running statistics are averaged over processes"
            more = extra if key == "world_size" else ""
            yield f"{now[key]} {unit} instead of {then[key]}: {_ORDER}{more}"
