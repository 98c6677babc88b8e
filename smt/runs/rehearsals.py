"""What rehearsals of an experiment came to, and what decides that: one JSON file an experiment.

Nothing here needs torch: what was rehearsed once is read anywhere.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache

from smt.config.project import Project
from smt.runs import record, source
from smt.runs.paths import PACKAGE, Layout
from smt.runs.record import Record

_WITHOUT_EFFECT = {
    "title", "deterministic", "recompute", "schedule", "guard", "global_batch", "device_batch",
    "drop_path", "unreadable_images", "eval_every",
}  # fmt: skip
"""Keys of a recipe that change no peak, or whose value in use stands beside it."""


class Rehearsal(Record):
    """What came of one experiment."""

    experiment: str
    precision: str
    images: int
    """In a batch of one GPU."""
    size: tuple[int, int]
    """Height and width of the batch."""
    recompute: bool = False
    """Whether blocks are computed again in the backward pass."""
    training_bytes: int = 0
    """Peak of a training step: of tensors alone, without CUDA's context and kernels' workspaces."""
    training_at: str = ""
    """Where in the code it is reached."""
    prediction_bytes: int = 0
    """Peak of the largest prediction of an evaluation, with the optimizer's state beside it."""
    waits: Mapping[str, int] = {}
    """Times in a step that the host waits for the GPU, by what for and where."""
    kernels: int = 0
    """Operations that compute, in a step; one may be several kernels of the GPU."""
    casts: int = 0
    """Of these, copies of tensors to another type."""
    traffic_bytes: int = 0
    """What the operations of a step read and write."""
    prediction_kernels: int = 0
    prediction_traffic_bytes: int = 0
    """The same of the prediction."""
    without_gradient: list[str] = []
    """Parameters that a step gives no gradient."""
    failure: str = ""
    """Why it ended, and where; empty if it did not."""
    seconds: float = 0.0

    @property
    def peak_bytes(self) -> int:
        """Peak of all that a training does."""
        return max(self.training_bytes, self.prediction_bytes)

    @property
    def fault(self) -> str:
        """Why it cannot be trained on any card, or nothing."""
        if self.failure or not self.without_gradient:
            return self.failure
        names = ", ".join(self.without_gradient[:3])
        return f"{len(self.without_gradient)} parameters get no gradient: {names}"


class Rehearsals(Record):
    """`rehearsal/EXPERIMENT.json`: what was rehearsed of an experiment as it is now."""

    key: str
    """Digest of what decides it: params, code, versions of libraries."""
    rehearsals: list[Rehearsal]

    def find(self, images: int, recompute: bool) -> Rehearsal | None:
        """Return the rehearsal of so many images a GPU, if there was one."""
        same = (
            each for each in self.rehearsals if (each.images, each.recompute) == (images, recompute)
        )
        return next(same, None)


def key(project: Project, experiment: str) -> str:
    """Return the digest of what decides the outcome of a rehearsal."""
    entry = project.experiments[experiment]
    recipe = project.recipe_of(experiment)
    content = {
        "code": _code(),
        "model": project.models[entry.model].model_dump(mode="json", exclude={"title"}),
        "head": entry.head and project.heads[entry.head].model_dump(mode="json", exclude={"title"}),
        "recipe": recipe.model_dump(mode="json", exclude=_WITHOUT_EFFECT),
        "classes": project.datasets[recipe.dataset].classes,
        "drop_path": project.drop_path(experiment),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> dict[str, str]:
    return source.digests() | source.digests_of(PACKAGE / "rehearsal")


def read(project: Project, layout: Layout, experiment: str) -> Rehearsals | None:
    """Return what was rehearsed of an experiment; None where that was of other params or code.

    Raises:
        DamagedRecord: the file is damaged.
    """
    path = layout.rehearsal(experiment)
    command = f"smt rehearse {experiment} --scale {layout.scale}"
    found = record.read(Rehearsals, path, f"remove it and run: {command}")
    return found if found is not None and found.key == key(project, experiment) else None


def add(project: Project, layout: Layout, rehearsal: Rehearsal) -> None:
    """Write down a rehearsal beside those of the same params and code."""
    name = rehearsal.experiment
    before = read(project, layout, name)
    same = (rehearsal.images, rehearsal.recompute)
    others = (
        []
        if before is None
        else [each for each in before.rehearsals if (each.images, each.recompute) != same]
    )
    after = Rehearsals(key=key(project, name), rehearsals=[rehearsal, *others])
    record.write(layout.rehearsal(name), after)
