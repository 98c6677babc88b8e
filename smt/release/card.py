"""A model card in Hugging Face's form: YAML for machines, then Markdown for people."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from smt.config.metrics import METRICS
from smt.release.choose import Item
from smt.report.format import signed
from smt.report.notes import INTERVAL, INTERVAL_TITLE, explain_verdict
from smt.report.render import markdown_text
from smt.report.verdict import delta, judge

UNDECIDED = "unknown"
"""Hugging Face's word for a licence that nobody has given."""

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
    """Under which terms the weights are given away: the decision of whoever publishes them."""

    identifier: str = UNDECIDED
    """By Hugging Face's list; `other` comes with a name and a link."""
    name: str | None = None
    link: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """Return what a card's head says of it."""
        given = {
            "license": self.identifier, "license_name": self.name, "license_link": self.link
        }  # fmt: skip
        return {key: value for key, value in given.items() if value is not None}

    @property
    def sentence(self) -> str:
        """Return what a card's text says of it."""
        if self.identifier == UNDECIDED:
            return (
                "Nobody has decided under which licence these weights may be used: ask whoever "
                "published them. The licence of the code, MIT, is not theirs."
            )
        name = self.name or self.identifier
        link = f" ({self.link})" if self.link else ""
        return f"The weights are under {name}{link}. The licence of the code, MIT, is not theirs."


def text(item: Item, file: str, licence: Licence, timm_knows: bool) -> str:
    """Return the card of one model; `file` is the name of its weights.

    `timm_knows` says if timm's model of this name is this model, at the paper's scale.
    """
    head = yaml.safe_dump(_head(item, licence), sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"---\n{head}---",
        f"# {markdown_text(item.project.experiments[item.run.experiment].title)}",
        *([f"**{markdown_text(notice)}**"] if (notice := item.project.scale.notice) else []),
        _introduction(item),
        "## Results",
        _results(item),
        markdown_text(item.how),
        "## Use",
        _use(item, file, timm_knows),
        "## Training",
        _training(item),
        "## Where it comes from",
        "\n".join(f"- {line}" for line in _origin(item)),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(item, licence)),
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _head(item: Item, licence: Licence) -> dict[str, Any]:
    metrics = [
        {"type": "accuracy", "name": f"{metric} (%)", "value": round(item.final.metrics[key], 4)}
        for key, metric in (("top1", "Top-1 accuracy"), ("top5", "Top-5 accuracy"))
        if key in item.final.metrics
    ]
    result = {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {
            "type": item.recipe.dataset, "name": item.dataset.title, "split": "validation"
        },
        "metrics": metrics,
    }  # fmt: skip
    head: dict[str, Any] = {
        **licence.fields,
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "smt"],
    }
    if metrics:
        head["metrics"] = ["accuracy"]
        head["model-index"] = [{"name": item.name, "results": [result]}]
    return head


def _introduction(item: Item) -> str:
    parent = item.provenance.parent
    start = (
        f"starting from the weights of {parent.experiment}, seed {parent.seed}"
        if parent
        else "from scratch"
    )
    return markdown_text(
        f"{item.model.title} of the Scale-Aware Modulation Transformer (ICCV 2023), trained at "
        f"{item.recipe.resolution} pixels on {item.dataset.title}, {start}. Made by a pipeline "
        "that reproduces the paper; these are not the weights that its authors released."
    )


def _results(item: Item) -> str:
    measured = [metric for metric in METRICS if metric in item.final.metrics]
    if not measured:
        loss = item.final.metrics["train_loss"]
        return (
            f"{markdown_text(item.dataset.title)} has no validation split: only the last training "
            f"loss is known, {loss:.4f}."
        )
    titles = ["Metric", "Reported", "This file", "Mean over seeds", "Mean less reported"]
    titles += [INTERVAL_TITLE] if _is_compared(item) else []
    lines = [
        f"| {' | '.join(titles)} | Verdict |",
        f"| --- |{' ---: |' * (len(titles) - 1)} --- |",
        *(_result(item, metric) for metric in measured),
    ]
    images = f"{item.evaluation.images:,} images of the validation split"
    text = "\n".join(lines) + f"\n\nOn {images}."
    if not _is_compared(item):
        return text
    explained = f"{INTERVAL} {explain_verdict(f'{_tolerance(item):g}')}"
    return f"{text} {markdown_text(explained)}"


def _is_compared(item: Item) -> bool:
    return item.project.scale.notice is None


def _result(item: Item, metric: str) -> str:
    decimals, summary = METRICS[metric].decimals, item.over_seeds(metric)
    assert summary is not None
    reported = item.project.reported_value(item.run.experiment, metric)
    value = reported.value if reported else None
    spread = item.spread(metric)
    verdict = judge(
        summary, value, spread, tolerance=_tolerance(item), comparable=_is_compared(item)
    )
    interval = f"± {spread.interval(summary.n):.{decimals}f}" if spread else "unknown"
    mean = f"{summary.mean:.{decimals}f}"
    if summary.std is not None:
        mean += f" ± {summary.std:.{decimals}f}"
    cells = [
        METRICS[metric].heading,
        "" if value is None else str(value),
        f"{item.final.metrics[metric]:.{decimals}f}",
        f"{mean} (n = {summary.n})",
        "" if value is None else signed(delta(summary.mean, value), decimals),
        *([interval] if _is_compared(item) else []),
        verdict,
    ]
    return f"| {' | '.join(cells)} |"


def _tolerance(item: Item) -> float:
    """Return the tolerance of the tables that the experiment stands in; 0 where it is in none."""
    return max(
        (
            table.tolerance
            for table in item.project.tables.values()
            if item.run.experiment in table.experiments
        ),
        default=0.0,
    )


def _use(item: Item, file: str, timm_knows: bool) -> str:
    lines = ["import timm", "import smt.models.zoo  # gives timm the models of this project", ""]
    if timm_knows:
        lines.append(
            f'model = timm.create_model("{item.architecture}", '
            f'num_classes={item.dataset.classes}, checkpoint_path="{file}").eval()'
        )
        after = ""
    else:
        lines.append('model = timm.create_model("local-dir:.", pretrained=True).eval()')
        after = (
            f"\n\nThis is the {item.architecture} of {item.project.scale.title}, which is smaller "
            "than the paper's, so the name alone does not make it: config.json brings its spec, "
            "and the dot stands for the folder of this card."
        )
    return "```python\n" + "\n".join(lines) + "\n```" + after


def _training(item: Item) -> str:
    content = {"recipe": item.provenance.params["recipe"]}
    content |= {"drop_path": item.provenance.params["drop_path"], "seed": item.run.seed}
    body = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=90)
    return f"{markdown_text(item.recipe.title)}:\n\n```yaml\n{body}```"


def _origin(item: Item) -> Iterator[str]:
    known, final = item.provenance, item.final
    git = known.git
    commit = f"commit {git.commit}" if git.commit else "not in a git checkout"
    yield f"run: {item.run}, fingerprint `{final.fingerprint}`"
    yield f"code: {commit}{', with changes that were not committed' if git.dirty else ''}"
    for key, digest in known.data.items():
        yield f"data: {markdown_text(key)}, digest of its manifest `{digest}`"
    if known.parent:
        yield f"parent: fingerprint `{known.parent.fingerprint}`"
    yield f"weights as exported by the training: SHA-256 `{final.weights_sha256}`"
    yield ", ".join(f"{name} {version}" for name, version in known.main_packages.items())
    hardware, environment = known.hardware, known.environment
    device = ", ".join(hardware.gpus) or hardware.processor
    yield (
        f"machine: {markdown_text(device)}, {environment.precision}, processes: "
        f"{environment.world_size}; trained for {_span(final.wall_seconds)}, GPU-hours: "
        f"{(final.gpu_seconds or 0) / 3600:.2f}, attempts: {len(known.attempts)}"
    )
    yield "`smt verify` works all of these numbers out again; `smt train` trains it again"


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _limits(item: Item, licence: Licence) -> Iterator[str]:
    if item.project.scale.notice:
        yield (
            f"{markdown_text(item.project.scale.notice)}: small models on "
            f"{markdown_text(item.dataset.title)}, to show that the pipeline works. Of no use "
            "beyond that."
        )
    yield (
        "A classifier of still images into the classes of its training data, with their errors and "
        "biases. It was not examined for fairness, robustness or any use outside of research."
    )
    yield "Accuracy was measured on the validation split alone, as that which it is compared with."
    yield licence.sentence
