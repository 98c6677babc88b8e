"""Model cards for the Hugging Face Hub: YAML metadata, then Markdown."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from smt.config.metrics import METRICS
from smt.release.selection import ModelRelease
from smt.report.format import signed
from smt.report.notes import INTERVAL, INTERVAL_TITLE, explain_verdict
from smt.report.render import markdown_text
from smt.report.verdict import delta, judge

UNKNOWN_LICENCE = "unknown"
"""The identifier in Hugging Face's list for weights without a licence."""

CITATION = """\
@inproceedings{lin2023scale,
  title     = {Scale-Aware Modulation Meet Transformer},
  author    = {Lin, Weifeng and Wu, Ziheng and Chen, Jiayu and Huang, Jun and Jin, Lianwen},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year      = {2023},
  note      = {arXiv:2307.08579}
}"""


@dataclass(frozen=True)
class Licence:
    """The licence of the weights, which whoever publishes them decides."""

    identifier: str = UNKNOWN_LICENCE
    """From Hugging Face's list; `other` needs a name and a link."""
    name: str | None = None
    link: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """Return its keys in the metadata of a card."""
        values = {
            "license": self.identifier, "license_name": self.name, "license_link": self.link
        }  # fmt: skip
        return {key: value for key, value in values.items() if value is not None}

    @property
    def sentence(self) -> str:
        """Return the sentences of a card about it."""
        code = "The MIT licence of the code does not apply to them."
        if self.identifier == UNKNOWN_LICENCE:
            return (
                "The licence of these weights has not been decided: ask whoever published them. "
                f"{code}"
            )
        name = self.name or self.identifier
        link = f" ({self.link})" if self.link else ""
        return f"The weights are licensed under {name}{link}. {code}"


def text(release: ModelRelease, file: str, licence: Licence, is_registered: bool) -> str:
    """Return the card of a model; `file` is the name of its weights.

    `is_registered` is whether timm builds the model from the name of its architecture alone.
    """
    metadata = yaml.safe_dump(
        _metadata(release, licence), sort_keys=False, allow_unicode=True, width=1000
    )
    parts = [
        f"---\n{metadata}---",
        f"# {markdown_text(release.project.experiments[release.run.experiment].title)}",
        *([f"**{markdown_text(notice)}**"] if (notice := release.project.scale.notice) else []),
        _introduction(release),
        "## Results",
        _results(release),
        markdown_text(release.seed_choice),
        "## Usage",
        _usage(release, file, is_registered),
        "## Training",
        _training(release),
        "## Provenance",
        "\n".join(f"- {line}" for line in _provenance(release)),
        "## Limitations",
        "\n".join(f"- {line}" for line in _limitations(release, licence)),
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(release: ModelRelease, licence: Licence) -> dict[str, Any]:
    metrics = [
        {"type": "accuracy", "name": f"{metric} (%)", "value": round(release.final.metrics[key], 4)}
        for key, metric in (("top1", "Top-1 accuracy"), ("top5", "Top-5 accuracy"))
        if key in release.final.metrics
    ]
    result = {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {
            "type": release.recipe.dataset, "name": release.dataset.title, "split": "validation"
        },
        "metrics": metrics,
    }  # fmt: skip
    metadata: dict[str, Any] = {
        **licence.fields,
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "smt"],
    }
    if metrics:
        metadata["metrics"] = ["accuracy"]
        metadata["model-index"] = [{"name": release.name, "results": [result]}]
    return metadata


def _introduction(release: ModelRelease) -> str:
    parent = release.provenance.parent
    start = (
        f"starting from the weights of {parent.experiment}, seed {parent.seed}"
        if parent
        else "from scratch"
    )
    return markdown_text(
        f"{release.model.title} of the Scale-Aware Modulation Transformer (ICCV 2023), trained at "
        f"{release.recipe.resolution} pixels on {release.dataset.title}, {start}. It comes "
        "from an independent reproduction of the paper; these are not the weights of its authors."
    )


def _results(release: ModelRelease) -> str:
    metrics = [metric for metric in METRICS if metric in release.final.metrics]
    if not metrics:
        loss = release.final.metrics["train_loss"]
        return (
            f"{markdown_text(release.dataset.title)} has no validation split; the last training "
            f"loss is {loss:.4f}."
        )
    titles = ["Metric", "Reported", "This file", "Mean over seeds", "Delta"]
    titles += [INTERVAL_TITLE] if _is_compared(release) else []
    lines = [
        f"| {' | '.join(titles)} | Verdict |",
        f"| --- |{' ---: |' * (len(titles) - 1)} --- |",
        *(_result(release, metric) for metric in metrics),
    ]
    images = f"{release.evaluation.images:,} images of the validation split"
    text = "\n".join(lines) + f"\n\nOn {images}."
    if not _is_compared(release):
        return text
    explanation = f"{INTERVAL} {explain_verdict(f'{_tolerance(release):g}')}"
    return f"{text} {markdown_text(explanation)}"


def _is_compared(release: ModelRelease) -> bool:
    return release.project.scale.notice is None


def _result(release: ModelRelease, metric: str) -> str:
    decimals, summary = METRICS[metric].decimals, release.summary(metric)
    assert summary is not None
    reported = release.project.reported_value(release.run.experiment, metric)
    value = reported.value if reported else None
    spread = release.spread(metric)
    verdict = judge(
        summary, value, spread, tolerance=_tolerance(release), comparable=_is_compared(release)
    )
    interval = f"± {spread.interval(summary.n):.{decimals}f}" if spread else "unknown"
    mean = f"{summary.mean:.{decimals}f}"
    if summary.std is not None:
        mean += f" ± {summary.std:.{decimals}f}"
    cells = [
        METRICS[metric].heading,
        "" if value is None else str(value),
        f"{release.final.metrics[metric]:.{decimals}f}",
        f"{mean} (n = {summary.n})",
        "" if value is None else signed(delta(summary.mean, value), decimals),
        *([interval] if _is_compared(release) else []),
        verdict,
    ]
    return f"| {' | '.join(cells)} |"


def _tolerance(release: ModelRelease) -> float:
    """Return the largest tolerance of the tables of the experiment; 0 if it is in none."""
    return max(
        (
            table.tolerance
            for table in release.project.tables.values()
            if release.run.experiment in table.experiments
        ),
        default=0.0,
    )


def _usage(release: ModelRelease, file: str, is_registered: bool) -> str:
    lines = ["import timm", "import smt.models.zoo  # registers the models in timm", ""]
    if is_registered:
        lines.append(
            f'model = timm.create_model("{release.architecture}", '
            f'num_classes={release.dataset.classes}, checkpoint_path="{file}").eval()'
        )
        after = ""
    else:
        lines.append('model = timm.create_model("local-dir:.", pretrained=True).eval()')
        after = (
            f"\n\nThis is the {release.architecture} of {release.project.scale.title}, which is "
            "smaller than the paper's, so timm needs its spec from config.json. The dot is the "
            "folder of this card."
        )
    return "```python\n" + "\n".join(lines) + "\n```" + after


def _training(release: ModelRelease) -> str:
    content = {"recipe": release.provenance.params["recipe"]}
    content |= {"drop_path": release.provenance.params["drop_path"], "seed": release.run.seed}
    body = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=90)
    return f"{markdown_text(release.recipe.title)}:\n\n```yaml\n{body}```"


def _provenance(release: ModelRelease) -> Iterator[str]:
    provenance, final = release.provenance, release.final
    git = provenance.git
    commit = f"commit {git.commit}" if git.commit else "not in a git checkout"
    yield f"run: {release.run}, fingerprint `{final.fingerprint}`"
    yield f"code: {commit}{', with uncommitted changes' if git.dirty else ''}"
    for key, digest in provenance.data.items():
        yield f"data: {markdown_text(key)}, digest of its manifest `{digest}`"
    if provenance.parent:
        yield f"parent: fingerprint `{provenance.parent.fingerprint}`"
    yield f"weights as exported by the training: SHA-256 `{final.weights_sha256}`"
    yield ", ".join(f"{name} {version}" for name, version in provenance.main_packages.items())
    hardware, environment = provenance.hardware, provenance.environment
    device = ", ".join(hardware.gpus) or hardware.processor
    yield (
        f"machine: {markdown_text(device)}, {environment.precision}, processes: "
        f"{environment.world_size}; trained for {_duration(final.wall_seconds)}, GPU-hours: "
        f"{(final.gpu_seconds or 0) / 3600:.2f}, attempts: {len(provenance.attempts)}"
    )
    yield "to recompute all of these numbers: `smt verify`; to train it again: `smt train`"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _limitations(release: ModelRelease, licence: Licence) -> Iterator[str]:
    if release.project.scale.notice:
        yield (
            f"{markdown_text(release.project.scale.notice)}: small models on "
            f"{markdown_text(release.dataset.title)}, to show that the pipeline works, and "
            "for no other use."
        )
    yield (
        "The model classifies images into the classes of its training data, and has their errors "
        "and biases. It was not evaluated for fairness, robustness or any use outside of research."
    )
    yield "Accuracy was measured on the validation split only, as in the paper."
    yield licence.sentence
