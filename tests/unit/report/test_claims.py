"""Verdicts on the paper's sentences, by published and by reproduced numbers."""

import math
import random
from dataclasses import replace
from functools import cache

import pytest

from smt.config.claims import Claim
from smt.config.project import Project
from smt.config.published import ReportedValue
from smt.report import build
from smt.report.claims import check_here, check_published, claims_grid
from smt.report.collect import Results, RunResult
from smt.report.comparison import ComparisonTest, verdict
from smt.report.evidence import Quantity
from smt.report.peers import PeerGrid
from smt.report.sizes import Macs, ModelSize, Sizes
from smt.report.spread import Spread
from smt.report.throughput import Throughput
from smt.runs.state import State
from tests.helpers.params import project_at

TINY, BASE = "imagenet1k_smt_tiny", "imagenet1k_smt_base"
TOP1 = f"{TINY}.top1"


@cache
def project_of(scale: str = "paper") -> Project:
    return project_at(scale)


def results(accuracies=(), *, scale="paper", sizes=()):
    """Return results in which runs have reached a top-1, given by experiment for each seed."""
    project, given = project_of(scale), dict(accuracies)
    runs = {}
    for run in project.runs:
        seeds = given.get(run.experiment, ())
        metrics = {"top1": seeds[run.seed]} if run.seed < len(seeds) else {}
        state = State.DONE if metrics else State.NOT_STARTED
        runs[run] = RunResult(run, state, "", None, None, None, metrics)
    measured = Sizes("paper", {name: size_of(*counts) for name, counts in dict(sizes).items()})
    return Results(project, None, runs, (), {"paper": measured, scale: measured}, Throughput())


def size_of(params_m, gmacs):
    macs = Macs(conv_linear=1, attention=int(gmacs * 1e9) + 1, reported=int(gmacs * 1e9))
    return ModelSize(title="", params=int(params_m * 1e6), macs={"224": macs})


def claim(formula, tolerance=0.0):
    return Claim(text="", source="abstract", formula=formula, tolerance=tolerance)


# --- published numbers -------------------------------------------------------------------------


def test_published_numbers_agree_with_every_claim_that_they_decide():
    project = project_of()
    verdicts = {name: check_published(project, it) for name, it in project.claims.items()}
    undecided = {name for name, outcome in verdicts.items() if outcome.verdict == "undecided"}
    # Derived from these very sentences, or of a number that no source prints.
    assert undecided == {"mask_rcnn_1x_over_swin", "mhmc_gain", "saa_gain", "ehn_gain"}
    others = {outcome.verdict for name, outcome in verdicts.items() if name not in undecided}
    assert others == {"consistent"}


@pytest.mark.parametrize(
    ("experiment", "metric", "value", "turned"),
    [
        (TINY, "top1", 82.1, {"smt_tiny_accuracy"}),
        (TINY, "top1", 81.2, {"smt_tiny_accuracy", "smt_tiny_over_swin_t"}),
        ("coco_mask_rcnn_3x_smt_base", "box_ap", 49.7, {"mask_rcnn_3x_over_swin"}),
        ("ade20k_upernet_smt_base", "miou_ms", 50.5, {"upernet_over_swin_multi_scale"}),
    ],
)
def test_a_changed_number_contradicts_exactly_the_claims_about_it(
    experiment, metric, value, turned
):
    project = project_of()
    published = project.reported.experiments
    changed = {**published[experiment], metric: ReportedValue(value=value, source="paper")}
    reported = project.reported.model_copy(
        update={"experiments": {**published, experiment: changed}}
    )
    other = project.model_copy(update={"reported": reported})
    contradicted = {
        name
        for name, it in other.claims.items()
        if check_published(other, it).verdict == "contradicted"
    }
    assert contradicted == turned


# --- numbers that were reproduced --------------------------------------------------------------


def test_sizes_decide_without_a_training():
    sizes = {"smt_tiny": (11.51, 2.4), "smt_small": (22.55, 4.69)}
    done = results(sizes=sizes)
    assert check_here(done, claim("abs(smt_tiny.params_m - 11.5) <= 0.05")).verdict == "reproduced"
    outcome = check_here(done, claim("abs(smt_small.params_m - 20.5) <= 0.05", tolerance=9))
    assert outcome.verdict == "contradicted"  # a tolerance is for trainings


def test_a_measured_size_takes_the_place_of_a_published_one_if_timm_has_the_model():
    formula = claim("smt_tiny.gmacs < peers_imagenet1k.swin_t.gmacs")
    sizes = {"smt_tiny": (11.5, 2.4)}
    outcome = check_here(results(sizes=sizes), formula)
    assert outcome.reason == "to be trained or measured: peers_imagenet1k.swin_t.gmacs"
    measured = {**sizes, "timm.swin_tiny_patch4_window7_224": (28.3, 2.3)}
    assert check_here(results(sizes=measured), formula).verdict == "contradicted"


@pytest.mark.parametrize(
    ("top1", "verdict"),
    [((82.3, 82.4, 82.5), "reproduced"), ((81.2, 81.3, 81.4), "contradicted"),
     ((81.9, 82.0, 82.1), "undecided")],
)  # fmt: skip
def test_means_over_seeds_decide_beyond_their_uncertainty(top1, verdict):
    outcome = check_here(results({TINY: top1}), claim(f"{TOP1} >= 82.2", tolerance=0.2))
    assert outcome.verdict == verdict


def test_a_single_seed_decides_nothing_and_what_is_missing_is_named():
    formula = claim(f"{TOP1} >= 82.2")
    outcome = check_here(results({TINY: (90.0,)}), formula)
    assert (outcome.verdict, outcome.reason) == ("undecided", f"one seed: train more of {TOP1}")
    assert check_here(results(), formula).reason == f"to be trained or measured: {TOP1}"


def test_the_summary_counts_claims_apart_from_their_runs():
    phrase, _, states = build.summary(results(), "claims").partition(": ")
    assert phrase == f"{len(project_of().claims)} claims on runs" and states.endswith("not started")


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        (f"1 / ({TOP1} - 82.2) > 0", f"division by 0: 1 / ({TOP1} - 82.2)"),
        (f"{TOP1} > 80 and {TOP1} / (smt_tiny.gmacs - smt_tiny.gmacs) > 0",
         f"division by 0: {TOP1} / (smt_tiny.gmacs - smt_tiny.gmacs)"),
        (f"{TOP1} * 1e308 > 0", f"too large a result: {TOP1} * 1e+308 > 0"),
    ],
)  # fmt: skip
def test_a_formula_that_divides_by_0_leaves_its_claim_undecided_and_no_other(formula, reason):
    done = results({TINY: (82.0, 82.4)}, sizes={"smt_tiny": (11.5, 2.4)})
    project = done.project
    claims = {**project.claims, "undefined": claim(formula)}
    done = replace(done, project=project.model_copy(update={"claims": claims}))
    for outcome in (
        check_published(project, claims["undefined"]), check_here(done, claims["undefined"])
    ):  # fmt: skip
        assert (outcome.verdict, outcome.reason) == ("undecided", reason)
    rows = claims_grid(done).records
    assert rows[-1]["here_reason"] == rows[-1]["published_reason"] == reason
    assert {row["published"] for row in rows[:-1]} == {"consistent", "undecided"}


def test_another_scale_is_not_compared():
    outcome = check_here(results({TINY: (90.0,)}, scale="demo"), claim(f"{TOP1} >= 82.2"))
    assert outcome.verdict == "not comparable"


def test_numbers_too_close_to_the_claim_are_said_to_be_so():
    top1 = (82.19, 82.21, 82.203)
    outcome = check_here(results({TINY: top1}), claim(f"{TOP1} >= 82.2"))
    assert outcome.reason == "too close for 100 seeds of each"


@pytest.mark.parametrize(("truth", "wrong"), [(82.0, "reproduced"), (81.99, "reproduced"),
                                              (82.01, "contradicted")])  # fmt: skip
def test_wrong_verdicts_are_as_rare_as_the_notes_say(truth, wrong):
    """At the edge of the tolerance 2.5 in 100: of 4,000 tries 100, with a deviation of 10."""
    (comparison,) = claim(f"{TOP1} >= 82.2").comparisons
    rng, tries, std, n, df = random.Random(0), 4000, 0.15, 3, 6
    count = 0
    for _ in range(tries):
        mean = rng.gauss(truth, std / math.sqrt(n))
        pooled = std * math.sqrt(sum(rng.gauss(0, 1) ** 2 for _ in range(df)) / df)
        quantity = Quantity(mean, n, Spread(pooled, df, (TINY,)))
        count += verdict([ComparisonTest(comparison, {TOP1: quantity}, 0.2)]) == wrong
    assert count / tries < 0.025 + 4 * math.sqrt(0.025 / tries)
    if truth == 82.0:
        assert count / tries > 0.025 - 4 * math.sqrt(0.025 / tries)


def test_the_table_shows_the_formula_with_numbers_in_place_of_names():
    project = project_of()
    grid = claims_grid(results({TINY: (82.3, 82.5)}))
    rows = dict(
        zip(project.claims, ([cell.text for cell in row] for row in grid.rows), strict=True)
    )
    assert rows["smt_tiny_accuracy"][2] == "82.2 >= 82.2"
    assert rows["smt_tiny_accuracy"][4] == "82.4 (n = 2) >= 82.2"
    assert rows["mask_rcnn_3x_over_swin"][2:6:2] == ["49.8 - 48.5 >= 1.3", "? - 48.5 >= 1.3"]


def test_the_table_has_a_row_and_a_record_for_each_claim():
    grid = claims_grid(results())
    assert len(grid.rows) == len(grid.records) == len(project_of().claims)
    assert all(len(row) == len(grid.columns) for row in grid.rows)
    assert {record["published"] for record in grid.records} == {"consistent", "undecided"}


# --- peers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["peers_imagenet1k", "peers_coco", "peers_ade20k"])
def test_peers_stand_by_cost_each_number_with_its_source(name):
    grid = PeerGrid(name, results()).grid()
    table = project_of().peer_tables[name]
    assert len(grid.rows) == len(table.peers) + len(table.experiments)
    costs = [float(record["gmacs_published"]) for record in grid.records]
    assert costs == sorted(costs)
    for record in grid.records:
        assert record["size_source"], record
        for metric in table.metrics:
            assert bool(record[f"{metric}_published"]) == bool(record[f"{metric}_source"])
    assert all(len(row) == len(grid.columns) for row in grid.rows)


def test_measured_sizes_and_reproduced_numbers_stand_beside_published_ones():
    sizes = {"smt_tiny": (11.507, 2.4), "timm.convnext_tiny": (28.589, 4.464)}
    grid = PeerGrid("peers_imagenet1k", results({TINY: (82.0, 82.2)}, sizes=sizes)).grid()
    rows = {row[0].text: [cell.text for cell in row] for row in grid.rows}
    convnext = rows["ConvNeXt-T"]
    assert [convnext[1][:2], convnext[2], convnext[4], convnext[5]] == [
        "29",
        "28.59",
        "4.46",
        "4.46",
    ]
    assert rows["SMT-T on ImageNet-1K"][2] == "11.51"
    assert rows["SMT-T on ImageNet-1K"][-1] == "82.10 ± 0.14"
