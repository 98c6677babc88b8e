"""Which experiments fit a card by rehearsal, and what would make the others fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from smt.config.cluster import Gpu
from smt.config.project import Project
from smt.config.recipes import ClassificationRecipe, DetectionRecipe, Recipe
from smt.runs import rehearsals
from smt.runs.paths import Layout
from smt.runs.rehearsals import Rehearsal

GIB = 2**30

BESIDE_TENSORS = 2 * GIB
"""Of a card's memory, for CUDA's context and kernels' workspaces: assumed."""


def room(card: Gpu) -> int:
    """Return the bytes that a card has for tensors."""
    return int(card.memory_gb * 1e9) - BESIDE_TENSORS


def gib(size: int) -> str:
    """Return a number of bytes in words."""
    return f"{size / GIB:,.2f} GiB"


class Rehearsed:
    """Rehearsals of a project: read where params and code are the same, else done and kept.

    `announce` is told of each that has to be done, which takes 5 to 60 seconds.
    """

    def __init__(
        self, project: Project, layout: Layout, announce: Callable[[str], None] | None = None
    ) -> None:
        self.project, self.layout, self._announce = project, layout, announce

    def peak(
        self, experiment: str, *, images: int | None = None, recompute: bool | None = None
    ) -> Rehearsal:
        """Return the rehearsal of a micro-batch of `images`, with or without `recompute`.

        By default both are what a training on the GPUs in use has.

        Raises:
            UserError: it has to be done and cannot, with this torch or beside a real GPU.
            DamagedRecord: what was kept cannot be read.
        """
        images, recompute = self._in_use(experiment, images, recompute)
        kept = rehearsals.read(self.project, self.layout, experiment)
        found = kept.find(images, recompute) if kept is not None else None
        return found or self.rehearse(experiment, images=images, recompute=recompute)

    def rehearse(
        self, experiment: str, *, images: int | None = None, recompute: bool | None = None
    ) -> Rehearsal:
        """Rehearse anew, with the same defaults, and keep what comes of it."""
        from smt.rehearsal.run import rehearse  # torch, which what was kept does not need

        images, recompute = self._in_use(experiment, images, recompute)
        if self._announce is not None:
            how = ", recomputed" if recompute else ""
            self._announce(f"rehearsing {experiment}, {images} images a GPU{how}")
        result = rehearse(self.project, experiment, images=images, recompute=recompute)
        rehearsals.add(self.project, self.layout, result)
        return result

    def _in_use(
        self, experiment: str, images: int | None, recompute: bool | None
    ) -> tuple[int, bool]:
        if recompute is None:
            recompute = self.project.recomputes(experiment, on_gpu=True)
        return images or self.project.recipe_of(experiment).device_batch, recompute


@dataclass(frozen=True)
class Fit:
    """Whether an experiment can be trained on a card."""

    rehearsal: Rehearsal
    room: int
    """Bytes that the card has for tensors."""
    remedies: tuple[str, ...] = ()
    """What would make it fit, where it does not."""

    @property
    def fits(self) -> bool:
        return not self.rehearsal.fault and self.rehearsal.peak_bytes <= self.room

    @property
    def fault(self) -> str:
        """Why it cannot be trained there as it is; nothing if it can."""
        if self.rehearsal.fault or self.fits:
            return self.rehearsal.fault
        return f"{gib(self.rehearsal.peak_bytes)} of the {gib(self.room)} that the card has"

    def as_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            **self.rehearsal.model_dump(exclude={"waits"}),
            "peak_bytes": self.rehearsal.peak_bytes,
            "room_bytes": self.room,
            "fits": self.fits,
            "remedies": list(self.remedies),
        }


def fit(rehearsed: Rehearsed, experiment: str) -> Fit:
    """Return whether an experiment fits the GPUs in use, and where it does not, what would help."""
    limit = room(rehearsed.project.cluster.kind)
    now = Fit(rehearsed.peak(experiment), limit)
    if now.fits or now.rehearsal.fault:
        return now
    return Fit(now.rehearsal, limit, tuple(_remedies(rehearsed, now.rehearsal, limit)))


def _remedies(rehearsed: Rehearsed, now: Rehearsal, limit: int) -> Iterator[str]:
    name, kind = now.experiment, rehearsed.project.cluster.gpu
    best, is_smt = now, rehearsed.project.experiments[name].model in rehearsed.project.smt_models
    if not now.recompute and is_smt:
        best = rehearsed.peak(name, recompute=True)
        if best.peak_bytes <= limit:
            yield (
                f"recompute: true in its recipe, or {name} in kinds.{kind}.recompute of "
                f"params/cluster.yaml: {gib(best.peak_bytes)}; the same numbers, more slowly"
            )
    # What does not fit recomputed is made smaller as well; else either of them is enough.
    recompute = (best.peak_bytes > limit and is_smt) or now.recompute
    smaller = _smaller(rehearsed, best if recompute else now, limit)
    if smaller is not None:
        yield _in_words(rehearsed.project, smaller, with_recompute=recompute and not now.recompute)
    cards = [
        card
        for card, gpu in rehearsed.project.cluster.kinds.items()
        if rehearsed.project.cluster.problem_of(card) is None and room(gpu) >= now.peak_bytes
    ]
    if cards:
        yield f"another kind of GPU: {', '.join(cards)}"


def _smaller(rehearsed: Rehearsed, now: Rehearsal, limit: int) -> Rehearsal | None:
    """Return the rehearsal of the largest part of a micro-batch that fits; None if none does."""
    # Weights and moments stay, so a batch has to shrink by more than the peak has to; a detector's
    # is padded less as well, with one image.
    recipe = rehearsed.project.recipe_of(now.experiment)
    padded = isinstance(recipe, DetectionRecipe)
    most = now.images * limit // now.peak_bytes
    for images in _parts(recipe, now.images):
        if padded or images <= most:
            smaller = rehearsed.peak(now.experiment, images=images, recompute=now.recompute)
            if not smaller.fault and smaller.peak_bytes <= limit:
                return smaller
    return None


def _parts(recipe: Recipe, whole: int) -> Iterator[int]:
    """Yield the smaller micro-batches that divide one, the largest first."""
    pairs = isinstance(recipe, ClassificationRecipe) and (
        recipe.augment.mixup or recipe.augment.cutmix
    )
    for images in range(whole // 2, 0, -1):
        if whole % images == 0 and not (pairs and images % 2):
            yield images


def _in_words(project: Project, smaller: Rehearsal, *, with_recompute: bool) -> str:
    recipe = project.recipe_of(smaller.experiment)
    parts = recipe.global_batch // smaller.images
    also = "recompute: true and " if with_recompute else ""
    return (
        f"{also}device_batch: {smaller.images}: {gib(smaller.peak_bytes)}, on {parts} GPUs or by "
        f"accumulation on fewer; BatchNorms then see {smaller.images} images and not "
        f"{recipe.device_batch}, so this is not the paper's training and has another fingerprint"
    )
