"""Pictures of what classifiers compute: the record beside them, and those that the page shows."""

import base64
from dataclasses import dataclass
from pathlib import Path

from smt.config.experiments import Run
from smt.config.project import Project
from smt.report.collect import Results, RunResult
from smt.runs import record, shared_folder
from smt.runs.paths import PICTURES_RECORD, Layout
from smt.runs.record import DamagedRecord, Record

GROUPS = ("pretrain", "finetune")
"""Experiments that the page has pictures of: the paper's models, and no ablations."""


class PicturesRecord(Record):
    """`pictures.json`: which pictures `smt look` made, and of which weights."""

    weights_sha256: str
    images: int
    """Images that receptive fields are the mean of."""
    resolution: int
    """Pixels of the images' sides."""
    files: list[str]
    """Names of the pictures, in the same folder."""


EXPLANATIONS = {
    "modulators": (
        "Modulator by stage: its mean absolute value over channels, in the last block of each "
        "stage that has scale-aware modulation. Each stage has a scale of its own."
    ),
    "mhmc_heads": (
        "MHMC by head: mean absolute value over the channels of each head, whose kernels are "
        "3 × 3, 5 × 5, 7 × 7 and so on."
    ),
    "receptive_field": (
        "Effective receptive field by stage: gradient of the central position of each stage's "
        "last block with respect to the image, averaged over images. Half of it lies within the "
        "solid square, 95 % within the dashed one."
    ),
    "class_activation": (
        "Class activation (Grad-CAM) of the class that each image is taken for, with the "
        "probability that the model gives it."
    ),
}
"""What each picture shows, by its file's name without the ending."""


@dataclass(frozen=True)
class Picture:
    """A picture as a page holds it."""

    name: str
    caption: str
    alt: str
    source: str


@dataclass(frozen=True)
class ModelPictures:
    """The pictures of one run."""

    title: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Pictures:
    """The pictures of a page."""

    models: tuple[ModelPictures, ...]
    note: str
    """What there are no pictures of yet, and why; empty where all are there."""
    damages: tuple[DamagedRecord, ...]
    """Records of pictures that cannot be read."""


def pictured(project: Project) -> list[str]:
    """Return the experiments whose first run is in pictures: the paper's models."""
    return [
        name
        for name in project.order
        if project.experiments[name].group in GROUPS
        and project.experiments[name].model in project.smt_models
    ]


def pictures(results: Results, layout: Layout) -> Pictures:
    """Return the pictures of the first run of each of the paper's models that has some."""
    project = results.project
    names = pictured(project)
    models, missing, damages = [], [], []
    unfinished = 0
    for name in names:
        done = [run for run in results.of(name) if run.has_numbers]
        unfinished += not done
        for run in done:
            try:
                found = _read(layout, run)
            except DamagedRecord as damage:
                damages.append(damage)
                continue
            if found:
                models.append(ModelPictures(_title(results, run), found))
                break
        else:
            missing += [str(run.run) for run in done[:1]]
    return Pictures(tuple(models), _note(unfinished, missing, damages, layout), tuple(damages))


def _read(layout: Layout, run: RunResult) -> tuple[Picture, ...]:
    """Return the pictures of a run; none where there are none, or they are of other weights."""
    folder = layout.pictures(run.run)
    final = record.read_metrics(layout, run.run)
    remedy = f"remove {folder} and run: snakemake pictures --config scale={layout.scale}"
    made = record.read(PicturesRecord, folder / PICTURES_RECORD, remedy)
    if made is None or final is None or made.weights_sha256 != final.weights_sha256:
        return ()
    paths = [folder / Path(name).name for name in made.files]
    if not all(shared_folder.exists(path) for path in paths):
        return ()
    return tuple(_picture(path, run.run) for path in paths)


def _picture(path: Path, run: Run) -> Picture:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    caption = EXPLANATIONS.get(path.stem, path.stem)
    alt = f"{caption.partition(':')[0].partition(' (')[0]} of {run}"
    return Picture(path.stem, caption, alt, f"data:image/{path.suffix[1:]};base64,{content}")


def _title(results: Results, run: RunResult) -> str:
    title = results.project.experiments[run.run.experiment].title
    return f"{title}, seed {run.run.seed}" if len(results.of(run.run.experiment)) > 1 else title


def _note(unfinished: int, missing: list[str], damages: list[DamagedRecord], layout: Layout) -> str:
    parts = [f"of {unfinished} models, none of whose runs is done"] if unfinished else []
    if missing:
        command = f"snakemake pictures --config scale={layout.scale}"
        parts.append(f"of {', '.join(missing)}, which {command} makes")
    parts += [f"for {damage}" for damage in damages]
    return f"No pictures yet {'; '.join(parts)}." if parts else ""
