"""`smt plan --claims` and `--gpu-hours`: what it takes to decide claims of the paper."""

import math
from dataclasses import dataclass

from smt.cluster import states
from smt.cluster.measured import MeasuredRate, measured_rates
from smt.commands.common import load, warn_of
from smt.commands.plan import EVERY
from smt.config.metrics import METRICS
from smt.config.project import Project
from smt.errors import UserError, suggest
from smt.report import claim_plan_text
from smt.report.claim_plan import Choice, ClaimPlanner, Spreads
from smt.report.claim_plan_text import Document
from smt.report.claim_rung import Rung
from smt.report.claim_seeds import POWER
from smt.report.collect import Results, collect
from smt.runs.paths import Layout


@dataclass(frozen=True)
class Wishes:
    """What the options say."""

    claims: str
    gpu_hours: str | None
    spreads: tuple[str, ...]
    power: str | None


def planned(
    project: Project, layout: Layout, wishes: Wishes, form: str | None, *, measured: bool
) -> str:
    """Return the plan in a form: text, JSON or CSV. `measured`: by rates that runs have reached.

    Raises:
        UserError: an option that makes no sense, or a scale whose results decide no claim.
    """
    names, given, power = _names(project, wishes.claims), _spreads(wishes.spreads), _power(wishes)
    hours = None if wishes.gpu_hours is None else _above_0("--gpu-hours", wishes.gpu_hours)
    if project.scale.notice is not None:
        raise UserError(
            f"--claims, --gpu-hours: results of scale {project.scale_name} cannot be compared with "
            "the paper's, so they decide no claim; valid: --scale paper"
        )
    results = collect(project, layout)
    warn_of(results.damages)
    rung_results = _rung_results(project)
    rates = _rates(project, layout) if measured else {}
    spreads = Spreads(results, rung_results, given)
    planner = ClaimPlanner(results, spreads, rates, power)
    plans = tuple(planner.plan(name) for name in names)
    choice = None if hours is None else Choice(planner, plans, hours)
    rung = None if rung_results is None else Rung(rung_results, spreads, plans)
    document = Document(planner, plans, choice, rung)
    forms = {"json": claim_plan_text.as_json, "csv": claim_plan_text.as_csv}
    return forms.get(form or "", claim_plan_text.text)(document)


def _rates(project: Project, layout: Layout) -> dict[str, MeasuredRate]:
    return measured_rates(layout, states.read(project, layout))


def _rung_results(project: Project) -> Results | None:
    """Return the results of the scale of shorter trainings, on the same cluster."""
    name = project.scale.first_rung
    if name is None:
        return None
    rung, layout = load(name)
    return collect(rung.model_copy(update={"cluster": project.cluster}), layout)


def _names(project: Project, text: str) -> tuple[str, ...]:
    if not project.claims:
        raise UserError("--claims, --gpu-hours: params/claims.yaml has no claim")
    if text == EVERY:
        return tuple(project.claims)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in project.claims:
            valid = suggest(name, project.claims)
            raise UserError(f"--claims: no claim {name!r} in params/claims.yaml; {valid}")
    return names


def _spreads(texts: tuple[str, ...]) -> dict[str, float]:
    """Return the standard deviation of each metric that is given; of all others by ``."""
    given: dict[str, float] = {}
    for text in texts:
        metric, _, number = text.rpartition("=")
        if metric and metric not in METRICS:
            raise UserError(f"--spread {text}: no metric {metric!r}; {suggest(metric, METRICS)}")
        given[metric] = _above_0(f"--spread {metric}=" if metric else "--spread", number)
    return given


def _power(wishes: Wishes) -> float:
    power = POWER if wishes.power is None else _number("--power", wishes.power)
    if not 0.5 <= power < 1:
        raise UserError(f"--power {power:g}: valid: 0.5 and more, less than 1")
    return power


def _above_0(option: str, text: str) -> float:
    number = _number(option, text)
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"{_shown(option, text)}: valid: a number above 0")
    return number


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{_shown(option, text)}: not a number, such as 0.5") from None


def _shown(option: str, text: str) -> str:
    return f"{option}{text}" if option.endswith("=") else f"{option} {text}"
