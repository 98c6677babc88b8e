"""The plan by evidence: seeds by the verdict rule, costs, the best choice, shorter trainings."""

import csv
import importlib.util
import io
import itertools
import json
import math
import random
import sys
from functools import cache

import pytest
from scipy import stats

from smt.cluster.cost import estimate
from smt.config import fingerprint
from smt.config.claims import Claim
from smt.config.experiments import Run
from smt.report.claim_plan import Choice, ClaimPlan, ClaimPlanner, Spreads, most_claims
from smt.report.claim_plan_text import Document, as_csv, as_json, text
from smt.report.claim_rung import Rung
from smt.report.claim_seeds import Trial
from smt.report.collect import Results, RunResult
from smt.report.comparison import probability_decided
from smt.report.drift import drift_grid
from smt.report.peers import PeerGrid
from smt.report.released import ReleasedResults
from smt.report.tables import ResultTable
from smt.runs.paths import Layout
from smt.runs.state import State
from tests.helpers import ROOT
from tests.helpers.in_process import smt
from tests.helpers.params import project_at

TINY, BASE = "imagenet1k_smt_tiny", "imagenet1k_smt_base"
LARGE, PRETRAINED = "imagenet1k_smt_large_224", "imagenet22k_smt_large"
MASK_RCNN = "coco_mask_rcnn_1x_smt_base"


@cache
def project_of(scale="paper"):
    return project_at(scale)


@cache
def benchmark():
    """Return the module of benchmarks/ that simulates trainings."""
    spec = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks" / "claims.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["claims"] = module
    spec.loader.exec_module(module)
    return module


def results(accuracies=(), scale="paper", claims=None):
    """Return results in which runs have reached a top-1, given by experiment for each seed."""
    project = project_of(scale)
    if claims:
        project = project.model_copy(update={"claims": {**project.claims, **claims}})
    none = benchmark().without_results(project)
    runs = dict(none.runs)
    for name, seeds in dict(accuracies).items():
        for seed, top1 in enumerate(seeds):
            run = Run(experiment=name, seed=seed)
            runs[run] = RunResult(run, State.DONE, "", None, None, None, {"top1": top1})
    return Results(project, None, runs, (), {**none.sizes, scale: none.sizes["paper"]})


def planner(*, given=None, rung=None, power=0.8, **changes):
    found = results(**changes)
    return ClaimPlanner(found, Spreads(found, rung, given or {}), {}, power)


def claim(formula, tolerance=0.0):
    return Claim(text="", source="abstract", formula=formula, tolerance=tolerance)


def cost(name):
    return estimate(project_of(), name).gpu_hours


# --- seeds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smt_tiny_accuracy", "smt_small_over_swin_s", "mhmc_gain"])
def test_the_verdict_comes_as_often_as_the_plan_says(name):
    """Of drawn trainings, by the rule of smt tables claims: true, false by as much, at the edge."""
    tries = 400
    rates = benchmark().Simulation(planner(), name).rates(tries)
    planned = rates.plan.probability
    assert planned >= 0.8

    def by_chance(probability):
        return 4 * math.sqrt(probability * (1 - probability) / tries)

    assert abs(rates.rate("true", "reproduced") - planned) <= by_chance(min(planned, 0.99))
    assert abs(rates.rate("false", "contradicted") - planned) <= by_chance(min(planned, 0.99))
    for verdict in ("reproduced", "contradicted"):
        assert rates.rate("edge", verdict) <= 0.025 + by_chance(0.025)
    assert rates.rate("true", "contradicted") == rates.rate("false", "reproduced") == 0


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_one_seed_less_would_not_do(power):
    made = planner(power=power)
    for name in project_of().claims:
        plan = made.plan(name)
        if plan.kind == "train":
            values, _ = benchmark().true_values(made.results, plan.claim)
            trial = Trial(made.results, plan.claim, values, made.spreads.std)
            assert plan.probability == probability_decided(trial.tests(plan.seeds)) >= power
            assert plan.seeds == 2 or probability_decided(trial.tests(plan.seeds - 1)) < power


def test_seeds_of_one_claim_by_hand():
    """5 seeds, 4 degrees of freedom: noncentral t with 0.2 / (0.1 / sqrt(5)), and with 4 seeds."""
    plan = planner().plan("smt_tiny_accuracy")
    assert (plan.seeds, plan.margin, plan.basis) == (5, pytest.approx(0.2), "published")
    by_hand = [
        stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, 0.2 / (0.1 / math.sqrt(n))) for n in (4, 5)
    ]
    assert plan.probability == pytest.approx(by_hand[1], abs=1e-6)
    assert by_hand[0] < 0.8 < by_hand[1]


def test_a_difference_of_two_trainings_has_both_spreads():
    """6 seeds of each: 10 degrees of freedom, an error of 0.1 * sqrt(2 / 6)."""
    plan = planner().plan("mhmc_gain")
    by_hand = stats.nct.sf(stats.t.ppf(0.975, 10), 10, 0.2 / (0.1 * math.sqrt(2 / 6)))
    assert (plan.seeds, plan.basis) == (6, "stated")
    assert plan.probability == pytest.approx(by_hand, abs=1e-6)


def test_the_spread_is_given_or_seen_or_seen_in_shorter_trainings_or_assumed():
    def source(**changes):
        spread = planner(**changes).spreads.of(TINY, "top1")
        return spread.std, spread.source.split(":")[0]

    pair = {TINY: (82.0, 82.4)}
    std = pytest.approx(math.sqrt(0.08))
    assert source() == (0.1, "assumed")
    assert source(rung=results(pair, "short")) == (std, "seen with short schedules")
    assert source(accuracies=pair, rung=results(scale="short")) == (std, "seen")
    assert source(accuracies=pair, given={"": 0.3}) == (0.3, "given as --spread")
    assert source(given={"": 0.3, "top1": 0.2})[0] == 0.2


def test_a_wider_spread_takes_more_seeds():
    seeds = [planner(given={"": std}).plan("smt_tiny_accuracy").seeds for std in (0.05, 0.1, 0.3)]
    assert seeds == sorted(set(seeds))


def test_what_is_seen_takes_the_place_of_what_is_published():
    done = {TINY: (82.0, 82.1, 82.2)}
    plan = planner(accuracies=done).plan("smt_tiny_accuracy")
    assert (plan.basis, plan.margin) == ("seen", pytest.approx(0.1))
    assert plan.seeds > 3


def test_the_table_asks_for_as_many_seeds_as_the_plan():
    done = {TINY: (82.0, 82.1, 82.2), BASE: (84.2, 84.4)}
    made = planner(accuracies=done)
    for name in ("smt_tiny_accuracy", "smt_base_accuracy"):
        outcome = benchmark().check_here(made.results, project_of().claims[name])
        assert outcome.reason == f"{made.plan(name).seeds} seeds of each would decide"


def test_a_number_that_nobody_published_is_taken_to_make_the_claim_just_true():
    formula = f"ablation_heads_8.top1 - {TINY}.top1 <= -0.5"
    made = planner(claims={"fewer_heads": claim(formula, 0.2)})
    plan = made.plan("fewer_heads")
    assert (plan.kind, plan.basis, plan.margin) == ("train", "stated", pytest.approx(0.2))


# --- claims that no seeds decide ---------------------------------------------------------------


def test_sizes_need_no_training_and_cost_nothing():
    plan = planner().plan("smt_tiny_size")  # as if smt profile had measured the published ones
    assert (plan.kind, plan.verdict, plan.runs) == ("decided", "reproduced", ())
    unmeasured = results()
    sizes = {"paper": type(unmeasured.sizes["paper"])("paper", {})}
    found = Results(unmeasured.project, None, unmeasured.runs, (), sizes)
    plan = ClaimPlanner(found, Spreads(found, None, {}), {}, 0.8).plan("smt_tiny_size")
    assert (plan.kind, plan.runs) == ("sizes", ())


def test_numbers_of_others_alone_are_decided_by_no_training_here():
    formula = "peers_imagenet1k.swin_b.top1 > peers_imagenet1k.swin_t.top1"
    assert planner(claims={"of_others": claim(formula)}).plan("of_others").kind == "published"


def test_a_claim_without_room_for_chance_is_decided_by_no_number_of_seeds():
    plan = planner(claims={"close": claim(f"{TINY}.top1 >= 82.2")}).plan("close")
    assert (plan.kind, plan.seeds, plan.runs) == ("too close", None, ())


@pytest.mark.parametrize(
    "formula",
    [f"1 / ({TINY}.top1 - 82.2) > 0", "1 / (smt_tiny.gmacs - smt_tiny.gmacs) > 0",
     f"1 / ablation_heads_8.top1 < {TINY}.top1"],
)  # fmt: skip
def test_a_formula_that_divides_by_0_is_planned_as_undefined(formula):
    made = planner(claims={"undefined": claim(formula)})
    plan = made.plan("undefined")
    assert (plan.kind, plan.verdict, plan.runs) == ("undefined", "undecided", ())
    printed = text(Document(made, (plan, made.plan("smt_tiny_accuracy")), None, None))
    assert "undefined: the formula has no value with the numbers assumed" in printed


def test_what_was_decided_needs_nothing_more():
    plan = planner(accuracies={TINY: (82.3, 82.4, 82.5)}).plan("smt_tiny_accuracy")
    assert (plan.kind, plan.verdict, plan.runs) == ("decided", "reproduced", ())


# --- costs -------------------------------------------------------------------------------------


def test_parents_are_included_and_shared_ones_count_once():
    made = planner()
    detector, large = made.plan("mask_rcnn_1x_over_swin"), made.plan("smt_large_at_224")
    # Params have three seeds of the backbone: later seeds start from its first.
    assert made.gpu_hours(detector.runs) == pytest.approx(5 * cost(MASK_RCNN) + 3 * cost(BASE))
    assert made.gpu_hours(large.runs) == pytest.approx(5 * cost(LARGE) + cost(PRETRAINED))
    both = (*detector.runs, *made.plan("smt_base_accuracy").runs)
    assert made.gpu_hours(both) == pytest.approx(5 * cost(MASK_RCNN) + 5 * cost(BASE))


def test_what_is_done_costs_nothing():
    done = {TINY: (82.19, 82.21)}
    made = planner(accuracies=done, given={"": 0.1})
    plan = made.plan("smt_tiny_over_swin_t")
    assert plan.kind == "decided"
    plan = made.plan("ehn_gain")
    left = (plan.seeds - 2) * cost(TINY) + plan.seeds * cost("ablation_ladder_baseline")
    assert made.gpu_hours(plan.runs) == pytest.approx(left)


class FewRuns:
    """Stands for a planner whose runs cost what they are given."""

    def __init__(self, costs):
        self.costs = {Run(experiment=f"e{i}", seed=0): hours for i, hours in enumerate(costs)}

    def is_done(self, run):
        return False

    def gpu_hours(self, runs):
        return sum(self.costs[run] for run in set(runs))


def plan_of(name, runs):
    return ClaimPlan(str(name), claim("smt_tiny.gmacs > 1"), "train", "undecided", seeds=2,
                     runs=tuple(runs))  # fmt: skip


@pytest.mark.parametrize("seed", range(25))
def test_no_choice_decides_more_or_is_cheaper(seed):
    rng = random.Random(seed)
    made = FewRuns([rng.choice([1, 2, 5, 10, 20.5]) for _ in range(8)])
    runs = list(made.costs)
    plans = [plan_of(i, rng.sample(runs, rng.randint(1, 4))) for i in range(7)]
    hours = rng.uniform(0, 50)
    chosen = most_claims(made, plans, hours)
    every = [
        (len(subset), -made.gpu_hours(run for plan in subset for run in plan.runs))
        for size in range(len(plans) + 1)
        for subset in itertools.combinations(plans, size)
    ]
    best = max(pair for pair in every if -pair[1] <= hours)
    total = made.gpu_hours(run for plan in chosen for run in plan.runs)
    assert (len(chosen), -total) == pytest.approx(best)


def test_the_order_is_the_cheapest_next_and_the_rest_is_named():
    made = planner()
    plans = [made.plan(name) for name in project_of().claims]
    choice = Choice(made, plans, 3000)
    assert [step.plan.name for step in choice.steps] == [
        "smt_tiny_over_swin_t", "smt_tiny_accuracy", "smt_small_over_swin_s",
    ]  # fmt: skip
    assert choice.steps[1].gpu_hours == pytest.approx(2 * cost(TINY))
    assert choice.gpu_hours == pytest.approx(5 * cost(TINY) + 3 * cost("imagenet1k_smt_small"))
    assert len(choice.left_out) == 11
    # Of the difference to SMT-T's baseline, five of the six seeds of SMT-T are there.
    ehn = next(step for step in choice.left_out if step.plan.name == "ehn_gain")
    assert ehn.gpu_hours == pytest.approx(cost(TINY) + 6 * cost("ablation_ladder_baseline"))


# --- shorter trainings -------------------------------------------------------------------------


def test_no_short_training_is_one_of_the_paper_s():
    prints = {}
    for scale in ("paper", "short"):
        project = project_of(scale)
        for run in project.runs:
            data = {key: key for key in fingerprint.inputs(project, run)}
            prints[scale, run] = fingerprint.fingerprint(project, run, data)
    assert len(set(prints.values())) == len(prints) == 2 * len(project_of().runs)
    epochs = {project_of("short").recipe_of(name).schedule.epochs for name in (TINY, PRETRAINED)}
    assert epochs == {100, 30}


def test_tables_of_short_trainings_say_so_and_have_no_published_number():
    done = results({TINY: (79.0, 79.2, 79.4)}, "short")
    grid = ResultTable("ablation_components", done).grid()
    assert grid.title == "Component ladder, short schedules"
    assert "not comparable with the paper" in grid.notice
    assert not {"reported", "delta", "verdict"} & {column.title for column in grid.columns}
    assert all(len(row) == len(grid.columns) for row in grid.rows)
    assert "82.2" not in " ".join(cell.text for row in grid.rows for cell in row)
    assert not any("delta" in note or "Verdict" in note for note in grid.notes)
    peers = PeerGrid("peers_imagenet1k", done).grid()
    row = next(row for row in peers.rows if row[0].text == "SMT-T on ImageNet-1K")
    assert [cell.text for cell in row[-2:]] == ["", "79.20 ± 0.20"]
    sizes = done.sizes["paper"]
    drift = [
        drift_grid(project_of(scale), sizes, ReleasedResults(Layout("paper"))).rows
        for scale in ("paper", "short")
    ]
    assert drift[0] == drift[1]


def test_the_first_rung_is_what_claims_compare_with_each_other():
    made = planner()
    plans = [made.plan(name) for name in project_of().claims]
    rung = Rung(results(scale="short"), made.spreads, plans)
    assert rung.claims == ("mhmc_gain", "saa_gain", "ehn_gain")
    assert (len(rung.experiments), rung.seeds, rung.runs, rung.done) == (4, 3, 12, 0)
    # Four experiments of three seeds: 8 degrees of freedom.
    half = stats.t.ppf(0.975, 8) * 0.1 * math.sqrt(2 / 3)
    assert rung.half_width == pytest.approx(half, abs=1e-6)
    short = [estimate(project_of("short"), name).gpu_hours for name in rung.experiments]
    assert rung.gpu_hours == pytest.approx(3 * sum(short))
    assert not Rung(results(scale="short"), made.spreads, plans[:2]).experiments


# --- what is printed ---------------------------------------------------------------------------


def document(hours=None):
    made = planner()
    plans = tuple(made.plan(name) for name in project_of().claims)
    choice = None if hours is None else Choice(made, plans, hours)
    return Document(made, plans, choice, Rung(results(scale="short"), made.spreads, plans))


@pytest.mark.parametrize("hours", [None, 10, 3000, 1e6])
def test_the_text_has_every_claim_and_fits_eighty_columns(hours):
    lines = text(document(hours)).splitlines()
    assert max(map(len, lines)) <= 80
    for name in project_of().claims:
        assert any(line.startswith(f"{name} ") for line in lines)
    assert any("probability of a verdict: 0.8" in line for line in lines)
    assert "smt plan --scale short" in " ".join(lines)


def test_json_and_csv_have_the_same_numbers():
    made = document(3000)
    content, rows = json.loads(as_json(made)), list(csv.DictReader(io.StringIO(as_csv(made))))
    assert [row["claim"] for row in rows] == [each["claim"] for each in content["claims"]]
    for row, each in zip(rows, content["claims"], strict=True):
        assert float(row["gpu_hours_to_do"]) == each["gpu_hours_to_do"]
    assert content["choice"]["order"][0]["claim"] == "smt_tiny_over_swin_t"
    assert content["runs"][TINY]["seeds"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu-hours", "-5"), "--gpu-hours -5: valid: a number above 0"),
        (("--gpu-hours", "0"), "--gpu-hours 0: valid: a number above 0"),
        (("--gpu-hours", "nan"), "--gpu-hours nan: valid: a number above 0"),
        (("--gpu-hours", "inf"), "--gpu-hours inf: valid: a number above 0"),
        (("--gpu-hours", "many"), "--gpu-hours many: not a number, such as 0.5"),
        (("--claims", "--spread", "0"), "--spread 0: valid: a number above 0"),
        (("--claims", "--spread", "top1=-1"), "--spread top1=-1: valid: a number above 0"),
        (("--claims", "--spread", "tp1=0.1"), "no metric 'tp1'; did you mean top1?"),
        (("--claims", "--power", "1"), "--power 1: valid: 0.5 and more, less than 1"),
        (("--claims", "smt_tny_size"), "no claim 'smt_tny_size' in params/claims.yaml; did you"),
        (("--claims", "--memory"), "--memory: not with --claims or --gpu-hours"),
        (("--claims", "--seeds", "0"), "--seeds: not with --claims or --gpu-hours"),
        (("--spread", "0.1"), "--spread: only with --claims or --gpu-hours"),
        (("--power", "0.9"), "--power: only with --claims or --gpu-hours"),
        (("--claims", "--scale", "short"), "results of scale short cannot be compared"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    scale = () if "--scale" in arguments else ("--scale", "paper")
    done = smt("--params", ROOT / "params", "plan", *arguments, *scale)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_plans_chosen_claims(tmp_path):
    folders = ("--params", ROOT / "params", "--results", tmp_path)
    done = smt(*folders, "plan", "--claims", "smt_tiny_accuracy,smt_tiny_size", "--spread",
               "top1=0.2", "--scale", "paper", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    kinds = {each["claim"]: each["kind"] for each in content["claims"]}
    assert kinds == {"smt_tiny_accuracy": "train", "smt_tiny_size": "sizes"}
    assert content["claims"][0]["seeds"] > 5
    assert "given as --spread" in next(iter(content["spreads"].values()))
