"""A budget as text, CSV and JSON. Hours are rounded: they are estimates."""

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from smt.cluster.budget import Budget, Part
from smt.cluster.cost import FP32_RATE, RECOMPUTED_PASSES, TRAINING_PASSES, nodes_for
from smt.config.cluster import Speed
from smt.config.deviation import deviation
from smt.runs.state import counts

WIDTH = 100
"""Columns that the text keeps to, where names are no longer than the paper's."""

HEADINGS = ("experiment", "MACs", "images", "epochs", "GPUs", "wall", "requeues", "runs", "to do",
            "GPU-h")  # fmt: skip

Rows = Sequence[Sequence[str]]


def text(budget: Budget) -> str:
    """Return experiments, tables, total, and what is assumed."""
    project, cluster = budget.project, budget.project.cluster
    title = (
        f"{project.scale.title} on {cluster.kind.title}, {cluster.gpus_per_node} a node, "
        f"{cluster.wall_hours:g} h a job: an estimate"
    )
    notice = [project.scale.notice] if project.scale.notice else []
    states = ", ".join(f"{n} {state}" for state, n in counts(budget.states.values()).items())
    parts = [title, _experiments(budget), _tables(budget), f"runs: {states}", _assumed(budget)]
    parts += [*_deviations(budget), *notice]
    return "\n\n".join(parts) + "\n"


def _experiments(budget: Budget) -> str:
    rows: list[Sequence[str]] = [HEADINGS]
    for name, cost in budget.estimates.items():
        nodes, per_node = nodes_for(cost.gpus, budget.project.cluster.gpus_per_node)
        part = budget.experiment(name)
        rows.append(
            (name, _count(cost.macs), _count(cost.images), str(cost.epochs), f"{nodes}x{per_node}",
             _span(cost.wall_hours), str(cost.requeues), *_progress(part), as_hours(part.gpu_hours))
        )  # fmt: skip
    legend = (
        "Per run: MACs of an image forward, images of an epoch, nodes x GPUs, wall time, requeues "
        "at the limit. GPU-h are of all runs."
    )
    return f"{aligned(rows)}\n\n{textwrap.fill(legend, WIDTH)}"


def _deviations(budget: Budget) -> list[str]:
    """Return a line for each experiment that these GPUs do not train as the paper did."""
    every = {name: _deviation(budget, name) for name in budget.estimates}
    return [f"{name}: {sentence}" for name, sentence in every.items() if sentence is not None]


def _deviation(budget: Budget, name: str) -> str | None:
    return deviation(budget.project, name, budget.estimates[name].gpus)


def _tables(budget: Budget) -> str:
    rows = [("table", "experiments", "runs", "to do", "GPU-h", "GPU-h to do", "longest chain")]
    parts = {name: budget.table(name) for name in budget.tables}
    for name, part in {**parts, "all, each run once": budget.total}.items():
        rows.append(
            (name, str(len({run.experiment for run in part.runs})), *_progress(part),
             as_hours(part.gpu_hours), as_hours(part.gpu_hours_to_do), _span(part.longest_hours))
        )  # fmt: skip
    notes = ["A table has what its rows start from as well."]
    if budget.shared:
        notes.append(
            f"Tables share {', '.join(budget.shared)}: in each of them, and once in the last line."
        )
    notes.append("Longest chain: the time for what is to do if no GPU is ever waited for.")
    return f"{aligned(rows)}\n\n{textwrap.fill(' '.join(notes), WIDTH)}"


def _assumed(budget: Budget) -> str:
    project, cluster, kind = budget.project, budget.project.cluster, budget.project.cluster.kind
    estimates = budget.estimates.values()
    evaluating = sum(budget.estimates[run.experiment].evaluation_hours for run in budget.runs)
    fastest = max((cost.images_per_second for cost in estimates), default=0)
    workers = project.scale.expected_workers
    facts = {
        "GPU": f"{kind.tflops:g} TFLOPS dense in half precision ({kind.source})",
        "efficiency": f"{kind.efficiency:g} of it ({kind.efficiency_source}), so "
        f"{cluster.kind.tflops * kind.efficiency:.3g} TFLOPS for SMT-T and its ablations; fp32 at "
        f"{FP32_RATE:g} of that",
        "models": f"{_speeds(cluster.speed)} ({cluster.speed.source})",
        **({"measured": _measured(budget)} if budget.rates else {}),
        "work": "MACs of convolutions, linear layers and attention, 2 FLOPs each; a training image "
        f"is {TRAINING_PASSES} forward passes, {RECOMPUTED_PASSES} with recompute; GPUs share a "
        "training without loss",
        "reading": f"keeps up: a GPU takes up to {fastest:,.0f} images/s here, which "
        + (f"its {workers} data workers deliver" if workers else "its process reads by itself"),
        "jobs": f"{cluster.scales[project.scale_name].startup_minutes:g} min to the first step, "
        f"{cluster.tail_minutes:g} min lost where one is cut off; asked for: {cluster.margin:g} "
        f"times the estimate, {cluster.floor_minutes} min at least; no waiting in the queue",
        "evaluation": f"after each training on 1 GPU, {as_hours(evaluating)} GPU-h in all, counted "
        "above",
    }
    width = max(map(len, facts)) + 4
    lines = [
        textwrap.fill(fact, WIDTH, initial_indent=f"  {name}".ljust(width),
                      subsequent_indent=" " * width)
        for name, fact in facts.items()
    ]  # fmt: skip
    return "\n".join(["assumed (edit params/cluster.yaml)", *lines])


def _speeds(speed: Speed) -> str:
    return ", ".join(f"{name} {factor:g} times as fast" for name, factor in speed.models.items())


def _measured(budget: Budget) -> str:
    """Return which experiments are estimated by the images per second of a run."""
    rates = (
        f"{name} {rate.images_per_second:,.0f} images/s a GPU ({rate.run})"
        for name, rate in budget.rates.items()
        if name in budget.estimates
    )
    return f"in place of an efficiency, by journals: {', '.join(rates)}"


def _progress(part: Part) -> tuple[str, str]:
    return str(len(part.runs)), "done" if part.runs and not part.to_do else str(part.to_do)


def aligned(rows: Rows) -> str:
    """Return rows as lines: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _count(number: int) -> str:
    """Return a count to three digits: 1.02T, 2.46G, 1.28M."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:#.3g}".rstrip(".") + unit
    return str(number)


def _span(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} d"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


def as_hours(hours: float) -> str:
    """Return GPU-hours to as many digits as an estimate has."""
    if hours >= 10:
        return f"{hours:,.0f}"
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


# --- for machines ----------------------------------------------------------------------------


def as_csv(budget: Budget) -> str:
    """Return one line an experiment: MACs and images in full, hours to three decimals."""
    records = [_record(budget, name) for name in budget.estimates]
    target = io.StringIO()
    writer = csv.DictWriter(target, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return target.getvalue()


def as_json(budget: Budget) -> str:
    """Return experiments, tables, total and the figures of the cluster."""
    project, cluster = budget.project, budget.project.cluster
    parts = {name: budget.table(name) for name in budget.tables}
    document = {
        "scale": project.scale_name,
        "notice": project.scale.notice,
        "gpu": {"kind": cluster.gpu, **cluster.kind.model_dump()},
        "cluster": cluster.model_dump(exclude={"gpu", "kinds", "scales"}),
        "startup_minutes": cluster.scales[project.scale_name].startup_minutes,
        "experiments": [_record(budget, name) for name in budget.estimates],
        "tables": [{"table": name, **_sums(part)} for name, part in parts.items()],
        "shared": budget.shared,
        "total": _sums(budget.total),
        "states": {str(run): state for run, state in budget.states.items()},
    }
    return json.dumps(document, indent=2) + "\n"


def _record(budget: Budget, name: str) -> dict[str, Any]:
    cost, part = budget.estimates[name], budget.experiment(name)
    experiment = budget.project.experiments[name]
    nodes, per_node = nodes_for(cost.gpus, budget.project.cluster.gpus_per_node)
    return {
        "experiment": name,
        "deviation": _deviation(budget, name) or "",
        "model": experiment.model,
        "recipe": experiment.recipe,
        "resolution": cost.resolution,
        "macs": cost.macs,
        "images": cost.images,
        "epochs": cost.epochs,
        "gpus": cost.gpus,
        "nodes": nodes,
        "gpus_per_node": per_node,
        "measured_in": str(budget.rates[name].run) if name in budget.rates else "",
        "images_per_second": round(cost.images_per_second, 3),
        "compute_hours": round(cost.compute_hours, 3),
        "wall_hours": round(cost.wall_hours, 3),
        "requeues": cost.requeues,
        "evaluation_hours": round(cost.evaluation_hours, 3),
        **_sums(part),
    }


def _sums(part: Part) -> dict[str, Any]:
    return {
        "runs": len(part.runs),
        "done": part.done,
        "gpu_hours": round(part.gpu_hours, 3),
        "gpu_hours_to_do": round(part.gpu_hours_to_do, 3),
        "longest_hours": round(part.longest_hours, 3),
    }
