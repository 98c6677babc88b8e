"""A plan of claims as text, JSON and CSV. Hours are rounded: they are estimates."""

import csv
import io
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smt.cluster.plan import aligned, as_hours
from smt.config.experiments import Run
from smt.config.numbers import experiment_of
from smt.report.claim_plan import Choice, ClaimPlan, ClaimPlanner, Step
from smt.report.claim_rung import Rung
from smt.report.claim_seeds import MOST_SEEDS
from smt.report.spread import COVERAGE

WIDTH = 80
"""Columns that the text keeps to, where names are no longer than the paper's."""


@dataclass(frozen=True)
class Document:
    """Everything that is printed."""

    planner: ClaimPlanner
    plans: tuple[ClaimPlan, ...]
    choice: Choice | None
    """Where a number of GPU-hours is given."""
    rung: Rung | None

    @property
    def to_train(self) -> tuple[ClaimPlan, ...]:
        """Claims that seeds decide: of the choice, if there is one."""
        if self.choice is not None:
            return tuple(step.plan for step in self.choice.steps)
        return tuple(plan for plan in self.plans if plan.kind == "train")

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of these claims, each once."""
        return tuple(dict.fromkeys(run for plan in self.to_train for run in plan.runs))


def text(document: Document) -> str:
    """Return claims, choice, trainings, first rung, and what is assumed."""
    project, cluster = document.planner.project, document.planner.project.cluster
    title = f"Claims at {project.scale.title}, on {cluster.kind.title}: an estimate"
    parts = [title, _claims(document)]
    if document.choice is not None:
        parts.append(_choice(document.choice))
    if document.runs:
        parts.append(_trainings(document))
    if document.rung is not None:
        parts.append(_rung(document.rung))
    return "\n\n".join([*parts, _assumed(document)]) + "\n"


def _claims(document: Document) -> str:
    rows: list[Sequence[str]] = [("claim", "decided by", "margin", "chance", "runs", "GPU-h")]
    for plan in document.plans:
        chance = "" if plan.probability is None else f"{100 * plan.probability:.0f} %"
        margin = "" if plan.margin is None else f"{plan.margin:.2f}"
        is_trained = plan.kind == "train"
        runs = str(len(plan.runs)) if is_trained else ""
        hours = as_hours(document.planner.gpu_hours(plan.runs)) if is_trained else ""
        free = "0" if plan.kind in ("decided", "sizes") else ""
        rows.append((plan.name, decided_by(plan), margin, chance, runs, hours or free))
    legend = (
        "Seeds: of each experiment of the claim. Margin: by how much it holds if the true numbers "
        "are as assumed below. Chance: of a verdict with these seeds. Runs and GPU-h: what it "
        "needs, parents included; GPU-h of what is to do."
    )
    notes = [legend, *_kinds(document.plans)]
    return f"{aligned(rows)}\n\n" + "\n".join(map(_fill, notes))


def decided_by(plan: ClaimPlan) -> str:
    """Return what decides a claim, in two words or so."""
    if plan.kind == "train":
        return f"{plan.seeds} seeds"
    words = {
        "decided": plan.verdict, "sizes": "smt profile", "published": "no training",
        "too close": "nothing here", "undefined": "undefined",
    }  # fmt: skip
    return words[plan.kind]


def _kinds(plans: Sequence[ClaimPlan]) -> list[str]:
    """Return what the words for claims that no seeds decide mean, of those that occur."""
    meanings = {
        "decided": "reproduced, contradicted: decided already, by what was trained or measured.",
        "sizes": "smt profile: it measures these sizes, which takes no training.",
        "published": "no training: about published numbers of others alone; smt tables claims "
        "checks those.",
        "too close": f"nothing here: not decided by {MOST_SEEDS} seeds of each, so close are the "
        "numbers to the claim and its tolerance.",
        "undefined": "undefined: the formula has no value with the numbers assumed, as where it "
        "divides by 0.",
    }
    kinds = {plan.kind for plan in plans}
    return [meaning for kind, meaning in meanings.items() if kind in kinds]


def _choice(choice: Choice) -> str:
    count, hours = len(choice.steps), f"{choice.hours:,g} GPU-h"
    head = (
        f"{hours} decide {count} claim{'' if count == 1 else 's'} by training, with "
        f"{as_hours(choice.gpu_hours)}; {as_hours(choice.hours - choice.gpu_hours)} are left. "
        "It is the most claims, and the cheapest choice of as many (exact, an integer program); in "
        "this order each costs least on top of those before it."
    )
    if not count:
        head = f"{hours} decide no claim by training."
    parts = [_fill(head)]
    if choice.steps:
        rows: list[Sequence[str]] = [("in this order", "seeds", "GPU-h on top", "GPU-h so far")]
        total = 0.0
        for step in choice.steps:
            total += step.gpu_hours
            rows.append((step.plan.name, str(step.plan.seeds), as_hours(step.gpu_hours),
                         as_hours(total)))  # fmt: skip
        parts.append(aligned(rows))
    if choice.left_out:
        rows = [("left out", "seeds", "GPU-h on top")]
        rows += [_left_out(step) for step in choice.left_out]
        parts.append(aligned(rows))
    return "\n\n".join(parts)


def _left_out(step: Step) -> Sequence[str]:
    return (step.plan.name, str(step.plan.seeds), as_hours(step.gpu_hours))


def _trainings(document: Document) -> str:
    """Return the trainings of all claims to train, each run once."""
    planner = document.planner
    rows: list[Sequence[str]] = [("to train", "seeds", "in params", "done", "GPU-h")]
    more = []
    for name, runs in runs_by_experiment(document).items():
        in_params = len(planner.project.seeds(name))
        done = sum(map(planner.is_done, runs))
        more += [name] if len(runs) > in_params else []
        rows.append((name, str(len(runs)), str(in_params), str(done),
                     as_hours(planner.gpu_hours(runs))))  # fmt: skip
    done = sum(map(planner.is_done, document.runs))
    rows.append(("all, each run once", str(len(document.runs)), "", str(done),
                 as_hours(planner.gpu_hours(document.runs))))  # fmt: skip
    parts = [aligned(rows)]
    if more:
        parts.append(
            _fill("More seeds than params have: add them as `seeds` of the experiment in "
                  "params/experiments.yaml. A seed whose parent has no run of it starts from the "
                  "parent's first: what a parent adds to the spread is then seen less.")
        )  # fmt: skip
    return "\n\n".join(parts)


def runs_by_experiment(document: Document) -> dict[str, list[Run]]:
    """Return the runs to have, by experiment, parents before children."""
    names = (name for name in document.planner.project.order)
    groups = {name: [run for run in document.runs if run.experiment == name] for name in names}
    return {name: runs for name, runs in groups.items() if runs}


def _rung(rung: Rung) -> str:
    scale = rung.project.scale_name
    head = (
        f"First rung: {rung.project.scale.title} (smt plan --scale {scale}). They decide no claim "
        "of the paper, whose trainings are longer; neither does any comparison with a published "
        "number."
    )
    if not rung.experiments:
        return _fill(f"{head} None of these claims compares trainings with each other, so they "
                     "would show the spread between seeds alone.")  # fmt: skip
    shown = (
        f"They show which of {len(rung.experiments)} trainings, that {len(rung.claims)} of these "
        f"claims compare with each other ({', '.join(rung.claims)}), are ahead, and how far seeds "
        f"spread, which takes the place of what is assumed below. With {rung.seeds} seeds of each "
        f"a difference of two is known to ± {rung.half_width:.2f} ({100 * COVERAGE:g} %). "
        f"{rung.runs} runs, {rung.done} of them done; to do: {as_hours(rung.gpu_hours)} GPU-h."
    )
    targets = " ".join(rung.experiments)
    command = textwrap.fill(
        f"snakemake --profile slurm {targets} --config scale={scale}", WIDTH - 2,
        initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
    return f"{_fill(f'{head} {shown}')}\n\n{command.replace(chr(10), f' {chr(92)}{chr(10)}')}"


def _assumed(document: Document) -> str:
    planner = document.planner
    facts = [
        f"verdict: as in smt tables claims: the mean over seeds against the claim, two-sided at "
        f"{100 * (1 - COVERAGE):.3g} %; probability of a verdict: {planner.power:g} at least "
        "(--power)",
        *(f"spread of {metric}: {fact}" for metric, fact in spread_facts(document).items()),
        *_truths(document.plans),
        "GPU-hours: as smt plan estimates them, with the same options",
    ]
    lines = [
        textwrap.fill(fact, WIDTH, initial_indent="  ", subsequent_indent="      ",
                      break_on_hyphens=False)
        for fact in facts
    ]  # fmt: skip
    return "\n".join(["assumed", *lines])


def spread_facts(document: Document) -> dict[str, str]:
    """Return the spread of each metric of each recipe that claims are planned with."""
    planner = document.planner
    facts: dict[tuple[str, str], dict[str, None]] = {}
    for plan in document.plans:
        if plan.kind not in ("train", "too close"):
            continue
        for name in plan.claim.names:
            experiment, metric = experiment_of(planner.project, name), name.rpartition(".")[2]
            if experiment is not None:
                spread = planner.spreads.of(experiment, metric)
                fact = f"{spread.std:.3g} between seeds, {spread.source}"
                recipes = facts.setdefault((metric, fact), {})
                recipes[planner.project.experiments[experiment].recipe] = None
    return {f"{metric} ({', '.join(recipes)})": fact for (metric, fact), recipes in facts.items()}


def _truths(plans: Sequence[ClaimPlan]) -> list[str]:
    sentences = {
        "published": "true numbers: the published ones",
        "stated": "true numbers that are not published: such that the claim is just true, with its "
        "tolerance to spare",
        "seen": "true numbers: those seen in the seeds that are done",
    }
    named = {basis: [plan.name for plan in plans if plan.basis == basis] for basis in sentences}
    return [
        f"{sentences[basis]} ({', '.join(names)})" if basis != "published" else sentences[basis]
        for basis, names in named.items()
        if names
    ]


def _fill(paragraph: str) -> str:
    return textwrap.fill(paragraph, WIDTH, break_on_hyphens=False)


# --- for machines ------------------------------------------------------------------------------


def as_json(document: Document) -> str:
    """Return everything as JSON."""
    planner, choice, rung = document.planner, document.choice, document.rung
    content: dict[str, Any] = {
        "scale": planner.project.scale_name,
        "gpu": planner.project.cluster.gpu,
        "power": planner.power,
        "level": round(1 - COVERAGE, 9),
        "spreads": spread_facts(document),
        "claims": [_record(document, plan) for plan in document.plans],
        "runs": {
            name: {
                "seeds": sorted(run.seed for run in runs),
                "done": sum(map(planner.is_done, runs)),
                "gpu_hours_to_do": round(planner.gpu_hours(runs), 3),
            }
            for name, runs in runs_by_experiment(document).items()
        },
        "gpu_hours_to_do": round(planner.gpu_hours(document.runs), 3),
    }
    if choice is not None:
        content["choice"] = {
            "gpu_hours": choice.hours,
            "order": [_step(step) for step in choice.steps],
            "left_out": [_step(step) for step in choice.left_out],
            "gpu_hours_left": round(choice.hours - choice.gpu_hours, 3),
        }
    if rung is not None:
        content["first_rung"] = {
            "scale": rung.project.scale_name,
            "claims": list(rung.claims),
            "experiments": list(rung.experiments),
            "seeds": rung.seeds,
            "half_width": None if math.isnan(rung.half_width) else round(rung.half_width, 4),
            "gpu_hours_to_do": round(rung.gpu_hours, 3),
        }
    return json.dumps(content, indent=2) + "\n"


def as_csv(document: Document) -> str:
    """Return one line a claim."""
    records = [_record(document, plan) for plan in document.plans]
    target = io.StringIO()
    writer = csv.DictWriter(target, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return target.getvalue()


def _record(document: Document, plan: ClaimPlan) -> dict[str, Any]:
    planner = document.planner
    return {
        "claim": plan.name,
        "kind": plan.kind,
        "verdict": plan.verdict,
        "basis": plan.basis,
        "margin": None if plan.margin is None else round(plan.margin, 9),
        "seeds": plan.seeds,
        "probability": None if plan.probability is None else round(plan.probability, 4),
        "runs": len(plan.runs),
        "done": sum(map(planner.is_done, plan.runs)),
        "gpu_hours_to_do": round(planner.gpu_hours(plan.runs), 3),
    }


def _step(step: Step) -> dict[str, Any]:
    return {"claim": step.plan.name, "seeds": step.plan.seeds,
            "gpu_hours_on_top": round(step.gpu_hours, 3)}  # fmt: skip
