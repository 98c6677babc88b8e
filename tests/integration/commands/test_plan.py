"""`smt plan`, what it reckons with (params/cluster.yaml), and what a job asks for."""

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from smt import dag
from smt.cluster import cost, plan
from smt.cluster.budget import Budget
from smt.cluster.measured import MeasuredRate, measured_rates
from smt.commands.plan import on_cluster
from smt.config import fingerprint, macs
from smt.config.experiments import Run
from smt.config.load import load_project
from smt.runs import record
from smt.runs.atomic import read_json
from smt.runs.journal import JOURNAL, TIMES
from smt.runs.paths import Layout
from smt.runs.record import Attempt, Environment, Provenance, RunMetrics
from smt.runs.state import RunState, State
from tests.helpers import ROOT
from tests.helpers.params import project_at
from tests.helpers.project_copy import ProjectCopy

TINY, SMALL, BASE = (f"imagenet1k_smt_{variant}" for variant in ("tiny", "small", "base"))
STAGE3, LARGE = "ablation_stage3_msa", "imagenet22k_smt_large"
AT_384 = "imagenet1k_smt_large_384"
DETECTOR, SEGMENTER = "coco_mask_rcnn_1x_smt_small", "ade20k_upernet_smt_small"
SHARED = (TINY, SMALL, BASE, STAGE3)
PAPER = project_at("paper")
DEMO = project_at("demo")
CLUSTER = PAPER.cluster


def altered(project=PAPER, **changes):
    """Return a project on a cluster with other figures."""
    return project.model_copy(update={"cluster": project.cluster.model_copy(update=changes)})


def budget(project=PAPER, done=()):
    return Budget(project, project.runs, dict.fromkeys(done, State.DONE))


# --- the arithmetic ----------------------------------------------------------------------------


def test_one_experiment_by_hand():
    # 1251 steps of 1024 images x 300 epochs x 3 passes, and 50,000 images after each epoch, at
    # 2.461268480 G MACs of 2 FLOPs, on 8 GPUs of 312 TFLOPS x 0.024.
    passes = 3 * 300 * 1251 * 1024 + 300 * 50_000
    hours = passes * 2 * 2.461268480e9 / (312e12 * 0.024) / 8 / 3600
    assert hours == pytest.approx(26.66, abs=0.005)
    found = cost.estimate(PAPER, TINY)
    assert found.compute_hours == pytest.approx(hours, rel=1e-12)
    # A job of 24 h trains 23.75: so two, each with 5 min of start-up, and 10 min between them.
    assert (found.attempts, found.requeues) == (2, 1)
    assert found.wall_hours == pytest.approx(hours + 20 / 60)
    alone = 5 / 60 + 50_000 * 2 * 2.461268480e9 / (312e12 * 0.024) / 3600
    assert found.evaluation_hours == pytest.approx(alone)
    assert found.gpu_hours == pytest.approx(8 * (hours + 20 / 60) + alone)
    assert budget().experiment(TINY).gpu_hours == pytest.approx(3 * found.gpu_hours)


def test_the_least_capability_is_that_of_the_installed_torch():
    import torch  # the rest of this file is about what needs none

    built_for = [float(each.removeprefix("sm_")) / 10 for each in torch.cuda.get_arch_list()]
    assert PAPER.cluster.least_capability == min(built_for)


def test_on_the_gpus_of_the_authors_it_takes_as_long_as_it_took_them():
    found = cost.estimate(altered(gpu="v100"), TINY)
    assert found.compute_hours == pytest.approx(2.5 * 24, rel=0.05)
    assert found.gpus == 8


def test_data_resolution_and_classes_are_those_of_each_experiment():
    large = cost.estimate(PAPER, LARGE)
    # 14,197,122 images in global batches of 4096; no images to evaluate on.
    assert (large.images, large.epochs, large.gpus) == (3466 * 4096, 90, 16)
    assert large.evaluation_hours == 5 / 60
    at_384 = cost.estimate(PAPER, AT_384)
    assert (at_384.resolution, at_384.images, at_384.epochs) == (384, 2502 * 512, 30)
    assert at_384.macs == 55_060_985_856
    assert large.macs == 17_907_127_296 + 768 * (21_841 - 1000)


def pass_hours(gmacs):
    """Hours of a forward pass on SMT-S on one of the paper scale's GPUs, in single precision."""
    return gmacs * 1e9 * 2 / (312e12 * 0.024 * 1.10 / 2) / 3600


def test_models_are_as_fast_beside_smt_t_as_the_release_s_throughputs_say():
    throughputs = {"smt_tiny": 636, "smt_small": 356, "smt_base": 237, "smt_large": 158}
    rates = {
        name: images * macs.forward(PAPER.models[name], 224, num_classes=1000).total
        for name, images in throughputs.items()
    }
    for name, rate in rates.items():
        assert CLUSTER.speed.of(name) == pytest.approx(rate / rates["smt_tiny"], abs=0.005)
    large, plain = (
        cost.estimate(project, LARGE).compute_hours
        for project in (PAPER, altered(speed=CLUSTER.speed.model_copy(update={"models": {}})))
    )
    assert large == pytest.approx(plain / 1.81)


def test_what_a_run_has_reached_takes_the_place_of_the_efficiency():
    found = cost.estimate(PAPER, SEGMENTER, 50.0)
    assert found.images_per_second == pytest.approx(50)
    # A forward pass of an image of 512 x 2048 is four thirds of what a crop takes in training.
    passes = 3 * 160_000 * 16 * 0.25 + (10 + 17.375) * 2000
    assert found.compute_hours == pytest.approx(passes * 4 / 3 / 50 / 8 / 3600)
    rates = {TINY: MeasuredRate(Run(experiment=TINY, seed=1), 2000.0)}
    text = plan.text(Budget(PAPER, PAPER.runs, {}, rates))
    words = " ".join(text.split())
    assert f"{TINY} 2,000 images/s a GPU ({TINY}-seed1)" in words
    assert "measured" not in plan.text(budget())


def test_the_rate_of_a_run_is_its_last_attempt_s_by_gpu(tmp_path):
    layout, run = Layout("paper", tmp_path), Run(experiment=TINY, seed=0)
    work_dir = layout.work_dir(run, "f" * 64)
    work_dir.mkdir(parents=True)

    def rates(device):
        begin(work_dir, device)
        state = RunState(run, State.RUNNING, fingerprint="f" * 64)
        return measured_rates(layout, {run: state})

    lines = [{"step": 50 * i, "epoch": 0, "metrics": {}} for i in range(1, 6)]
    (work_dir / JOURNAL).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    times = [
        {"line": i, "time": 100.0 * i, "metrics": {"system/images_per_second": rate}}
        for i, rate in enumerate((9.0, 9.0, 800.0, 1600.0, 1700.0))
    ]
    (work_dir / TIMES).write_text("".join(f"{json.dumps(each)}\n" for each in times))
    assert rates("cuda") == {TINY: MeasuredRate(run, 400.0)}  # 4 GPUs; what is older was slower
    assert rates("cpu") == {}
    (work_dir / "provenance.json").write_text("{")
    state = RunState(run, State.FAILED, fingerprint="f" * 64)
    assert measured_rates(layout, {run: state}) == {}


def begin(work_dir, device):
    """Leave a provenance of two attempts, the last from 150 s on, by four processes."""
    environment = Environment(world_size=4, threads=1, device=device)
    attempts = [Attempt(started=at, environment=environment) for at in (0.0, 150.0)]
    known = Provenance(
        experiment=TINY, seed=0, scale="paper", fingerprint="f" * 64, params={},
        names={"task": "", "model": "", "recipe": "", "dataset": "", "group": ""}, data={},
        parent=None, hardware={"host": "", "processor": "", "gpus": []}, environment=environment,
        git={"commit": None, "dirty": None}, packages={}, created=0.0, attempts=attempts,
    )  # fmt: skip
    record.write(work_dir / "provenance.json", known)


def test_one_detector_by_hand():
    # 7329 steps of 16 images x 12 epochs x 3 passes, and 5,000 images after each epoch.
    hours = (3 * 12 * 7329 * 16 + 12 * 5000) * pass_hours(340.81124864) / 8
    found = cost.estimate(PAPER, DETECTOR)
    assert (found.images, found.macs) == (117_264, 340_811_248_640)
    assert found.compute_hours == pytest.approx(hours, rel=1e-12)
    assert found.evaluation_hours == pytest.approx(5 / 60 + 5000 * pass_hours(340.81124864))


def test_a_segmenter_trains_on_crops_and_is_evaluated_at_several_scales_in_the_end():
    # A crop of 512 x 512 is a quarter of the 512 x 2048 that MACs are counted at. The last
    # evaluation has a single scale, and 0.5, 0.75, 1, 1.25, 1.5 and 1.75 with their mirror images:
    # 1 + 2 (0.25 + 0.5625 + 1 + 1.5625 + 2.25 + 3.0625) = 1 + 17.375 areas.
    recipe = PAPER.recipes["upernet_160k"]
    assert (cost.trained_area(recipe), cost.final_passes(recipe)) == (0.25, 18.375)
    for name in ("imagenet1k", "mask_rcnn_3x"):
        other = PAPER.recipes[name]
        assert (cost.trained_area(other), cost.final_passes(other)) == (1, 1)
    # 160,000 steps of 16 crops x 3 passes; 2,000 images at each of 10 intervals, and the rest of
    # the last evaluation.
    passes = 3 * 160_000 * 16 * 0.25 + 10 * 2000 + 17.375 * 2000
    found = cost.estimate(PAPER, SEGMENTER)
    assert (found.images, found.epochs) == (16_000 * 16, 10)
    one = pass_hours(1019.062255616)
    assert found.compute_hours == pytest.approx(passes * one / 8, rel=1e-12)
    assert found.evaluation_hours == pytest.approx(5 / 60 + 18.375 * 2000 * one)
    assert found.images_per_second == pytest.approx(1 / (0.75 * 3600 * one))


def test_without_mirror_images_the_last_evaluation_has_half_of_the_several_scales():
    recipe: Any = PAPER.recipes["upernet_160k"]
    evaluation = recipe.evaluation.model_copy(update={"hflip": False})
    plain = recipe.model_copy(update={"evaluation": evaluation})
    assert cost.final_passes(plain) == 1 + 17.375 / 2


def test_single_precision_is_half_as_fast():
    recipe = PAPER.recipes["imagenet1k"].model_copy(update={"precision": "fp32"})
    slow = PAPER.model_copy(update={"recipes": {**PAPER.recipes, "imagenet1k": recipe}})
    ours, half = cost.estimate(slow, TINY), cost.estimate(PAPER, TINY)
    assert ours.compute_hours == pytest.approx(2 * half.compute_hours)


def test_recomputation_takes_one_more_forward_pass_of_each_training_image():
    kind = CLUSTER.kind.model_copy(update={"recompute": (TINY,)})
    again, plain = (
        cost.estimate(project, TINY)
        for project in (altered(kinds={**CLUSTER.kinds, CLUSTER.gpu: kind}), PAPER)
    )
    assert again.images_per_second == pytest.approx(plain.images_per_second * 3 / 4)
    assert again.evaluation_hours == plain.evaluation_hours


def test_evaluations_between_epochs_count_and_so_does_the_last_one():
    def hours(every):
        recipe = PAPER.recipes["imagenet1k"].model_copy(update={"eval_every": every})
        project = PAPER.model_copy(update={"recipes": {**PAPER.recipes, "imagenet1k": recipe}})
        return cost.estimate(project, TINY).compute_hours

    one = 50_000 * 2 * 2.461268480e9 / (312e12 * 0.024) / 8 / 3600
    assert hours(1) - hours(300) == pytest.approx(299 * one)
    assert hours(299) - hours(300) == pytest.approx(one)


@pytest.mark.parametrize(
    ("hours", "attempts"), [(0, 1), (11.5, 1), (11.501, 2), (23, 2), (23.01, 3), (115, 10)]
)
def test_a_training_is_requeued_when_it_is_longer_than_a_job_can_train(hours, attempts):
    cluster = altered(wall_hours=11.75, tail_minutes=10).cluster  # 15 min of it are lost
    assert cost.attempts_for(hours, cluster, "paper") == attempts


@given(hours=st.floats(0.01, 5000), limit=st.floats(0.5, 200), lost=st.floats(0, 20))
def test_the_attempts_are_the_fewest_that_suffice(hours, limit, lost):
    cluster = altered(wall_hours=limit, tail_minutes=lost).cluster
    attempts = cost.attempts_for(hours, cluster, "paper")
    useful = limit - 5 / 60 - lost / 60
    assert attempts * useful > hours * (1 - 1e-9)
    assert (attempts - 1) * useful < hours * (1 + 1e-9)


# --- what a job asks for -----------------------------------------------------------------------


def dag_plan(project):
    return dag.Plan(project, Layout(project.scale_name))


def test_a_training_asks_for_its_gpus_on_whole_nodes():
    large = dag_plan(PAPER).resources(Run(experiment=LARGE, seed=0))
    assert large == cost.Resources(
        nodes=2, tasks_per_node=8, gpus_per_node=8, cpus_per_task=8, mem_mb=8 * 12_000, runtime=1440
    )
    tiny = dag_plan(altered(gpus_per_node=4)).resources(Run(experiment=TINY, seed=2))
    assert (tiny.nodes, tiny.tasks_per_node, tiny.gpus_per_node) == (2, 4, 4)
    assert tiny.mem_mb == 4 * 12_000


def test_the_demo_asks_for_one_gpu_and_the_least_time():
    assert dag_plan(DEMO).resources(Run(experiment=TINY, seed=0)) == cost.Resources(
        nodes=1, tasks_per_node=1, gpus_per_node=1, cpus_per_task=1, mem_mb=1500, runtime=30
    )


def test_the_time_asked_for_is_the_estimate_with_its_margin_below_the_limit():
    wall = cost.estimate(altered(wall_hours=200), TINY).wall_hours
    run = Run(experiment=TINY, seed=0)
    asked = dag_plan(altered(wall_hours=200, margin=1.25)).resources(run).runtime
    assert 75 * wall <= asked < 75 * wall + 1
    assert dag_plan(altered(wall_hours=30, margin=1.25)).resources(run).runtime == 1800


@given(gpus=st.integers(1, 512), per_node=st.integers(1, 16))
def test_nodes_are_the_fewest_that_are_filled_alike(gpus, per_node):
    nodes, each = cost.nodes_for(gpus, per_node)
    assert nodes * each == gpus and each <= per_node
    assert not any(gpus % n == 0 and gpus // n <= per_node for n in range(1, nodes))


# --- totals ------------------------------------------------------------------------------------


def test_a_table_has_what_its_rows_start_from_and_the_total_has_everything_once():
    found = budget()
    assert {run.experiment for run in found.table("imagenet22k").runs} == {
        LARGE, "imagenet1k_smt_large_224", AT_384,
    }  # fmt: skip
    assert found.shared == SHARED
    tables = sum(found.table(name).gpu_hours for name in found.tables)
    # smt_tiny stands in four tables besides one, stage3_msa in one besides one. Three tables have
    # heads that start from a run of smt_small, two from one of smt_base.
    twice = 4 * found.experiment(TINY).gpu_hours + found.experiment(STAGE3).gpu_hours
    started = 3 * found.estimates[SMALL].gpu_hours + 2 * found.estimates[BASE].gpu_hours
    peer = found.estimates["imagenet1k_swin_tiny"].gpu_hours  # in a table of peers.yaml alone
    assert found.total.gpu_hours == pytest.approx(tables - twice - started + peer)
    assert len(found.total.runs) == len(PAPER.runs)
    assert set(found.total.runs) == set(PAPER.runs)


def test_what_is_done_is_left_out_of_what_is_to_do():
    runs = [Run(experiment=TINY, seed=0), Run(experiment=LARGE, seed=0)]
    before, after = budget(), budget(done=runs)
    tiny, large = (before.estimates[name].gpu_hours for name in (TINY, LARGE))
    assert after.total.done == 2 and after.total.to_do == len(PAPER.runs) - 2
    assert after.total.gpu_hours == before.total.gpu_hours
    assert after.total.gpu_hours_to_do == pytest.approx(before.total.gpu_hours - tiny - large)
    assert after.experiment(LARGE).gpu_hours_to_do == 0


def test_the_longest_chain_is_a_training_and_the_slowest_that_starts_from_it():
    found = budget()
    small, cascade = found.estimates[SMALL], found.estimates["coco_cascade_mask_rcnn_smt_small"]
    chain = small.wall_hours + cascade.wall_hours + cascade.evaluation_hours
    assert found.total.longest_hours == pytest.approx(chain)
    large, at_384 = found.estimates[LARGE], found.estimates[AT_384]
    chain = large.wall_hours + at_384.wall_hours + at_384.evaluation_hours
    assert found.table("imagenet22k").longest_hours == pytest.approx(chain)
    done = budget(done=[Run(experiment=LARGE, seed=0)]).table("imagenet22k")
    assert done.longest_hours == pytest.approx(chain - large.wall_hours)


def test_chosen_runs_bring_the_run_that_they_start_from():
    child = Run(experiment=AT_384, seed=0)
    assert Budget(PAPER, [child], {}).runs == (Run(experiment=LARGE, seed=0), child)


def test_options_take_the_place_of_the_cluster_s_figures():
    same = on_cluster(PAPER, None, None, None, None)
    assert same == PAPER
    other = on_cluster(PAPER, "h100", 4, 48.0, 0.5).cluster
    assert (other.gpu, other.gpus_per_node, other.wall_hours) == ("h100", 4, 48.0)
    assert other.kind.efficiency == 0.5 and "--efficiency" in other.kind.efficiency_source
    assert other.kind.tflops == CLUSTER.kinds["h100"].tflops


# --- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return ProjectCopy(tmp_path_factory.mktemp("plan") / "project")


def test_it_loads_neither_torch_nor_anything_else_that_is_slow(project):
    code = (
        "import sys\nfrom smt.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = project.run("python", "-c", code, "plan", "--scale", "paper")
    assert "in all, counted above" in done.stdout, done.stderr
    slow = {"torch", "torchvision", "timm", "mlflow", "pandas", "numpy", "matplotlib", "rich"}
    assert slow.isdisjoint(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("scale", ["paper", "demo"])
def test_it_prints_every_experiment_and_table_and_what_is_assumed(project, scale):
    done = project.smt("plan", "--scale", scale)
    assert (done.returncode, done.stderr) == (0, "")
    loaded = PAPER if scale == "paper" else DEMO
    first_words = [line.split()[0] for line in done.stdout.splitlines() if line]
    judged = [name for name, table in loaded.tables.items() if not table.brief]
    for name in (*loaded.experiments, *judged):
        assert name in first_words
    words = " ".join(done.stdout.split())
    kind = loaded.cluster.kind
    for said in (kind.title, kind.source, kind.efficiency_source, "params/cluster.yaml"):
        assert said in words
    assert f"Tables share {', '.join(SHARED)}: in each of them, and once in the last line" in words
    assert (loaded.scale.notice or "an estimate") in words


@pytest.mark.parametrize("kind", CLUSTER.kinds)
def test_a_line_is_no_wider_than_a_hundred_columns(kind):
    for loaded in (PAPER, DEMO):
        text = plan.text(budget(altered(loaded, gpu=kind)))
        assert max(map(len, text.splitlines())) <= plan.WIDTH
        assert kind == CLUSTER.gpu or CLUSTER.kind.title not in text


def test_the_line_of_an_experiment_says_what_it_takes(project):
    out = project.smt("plan", "--scale", "paper").stdout
    line = next(line for line in out.splitlines() if line.startswith(LARGE)).split()
    assert line[1:6] == ["17.9G", "14.2M", "90", "2x8", "7.4"]
    assert line[-4:-1] == ["7", "1", "1"]
    total = next(line for line in out.splitlines() if line.startswith("all, each run once"))
    counts = len(PAPER.experiments), len(PAPER.runs), len(PAPER.runs)
    assert total.split()[4:7] == [*map(str, counts)]
    assert total.split()[7] == total.split()[8] == f"{budget().total.gpu_hours:,.0f}"


def test_figures_given_as_options_change_the_plan(project):
    def experiments(*options):
        done = project.smt("plan", "--scale", "paper", "--csv", *options)
        assert done.returncode == 0, done.stderr
        return {row["experiment"]: row for row in csv.DictReader(io.StringIO(done.stdout))}

    plain = experiments()
    assert plain[TINY]["requeues"] == "1" and set(plain) == set(PAPER.experiments)
    assert experiments("--wall-hours", "48")[TINY]["requeues"] == "0"
    assert experiments("--wall-hours", "12")[TINY]["requeues"] == "2"
    assert experiments("--gpus-per-node", "4")[LARGE]["nodes"] == "4"
    compute = float(plain[SMALL]["compute_hours"])
    twice = experiments("--efficiency", "0.048")[SMALL]["compute_hours"]
    assert float(twice) == pytest.approx(compute / 2, abs=0.001)
    h100 = float(experiments("--gpu", "h100")[SMALL]["compute_hours"])
    assert h100 == pytest.approx(compute * 312 * 0.024 / (989 * 0.012), rel=1e-4)
    chosen = experiments("--seeds", "1,2")
    assert LARGE not in chosen and chosen[TINY]["runs"] == "2"  # 22K has seed 0 alone


def test_fewer_gpus_than_the_paper_s_are_named_where_they_change_the_training(tmp_path):
    project = ProjectCopy(tmp_path / "project")
    project.edit("cluster.yaml", "    gpus: 8   ", "    gpus: 2   ")
    done = project.smt("plan", "--scale", "paper")
    lines = [line for line in done.stdout.splitlines() if "not the paper's training" in line]
    assert {line.partition(":")[0] for line in lines} == {
        "coco_cascade_mask_rcnn_smt_small", "coco_atss_smt_small", "coco_sparse_rcnn_smt_small",
        "coco_dino_smt_small", "ade20k_upernet_smt_small", "ade20k_upernet_smt_base",
    }  # fmt: skip
    assert all("on 2 GPUs instead of 8" in line for line in lines)
    assert "paper's training" not in project.smt("plan", "--scale", "demo").stdout


def test_json_holds_what_the_text_says(project):
    document = json.loads(project.smt("plan", "--scale", "paper", "--json").stdout)
    assert document["gpu"]["kind"] == "a100_80gb" and document["cluster"]["wall_hours"] == 24
    found = budget()
    assert document["total"]["gpu_hours"] == pytest.approx(found.total.gpu_hours, abs=0.001)
    assert [each["experiment"] for each in document["experiments"]] == list(found.estimates)
    assert [each["table"] for each in document["tables"]] == list(found.tables)
    assert document["shared"] == list(SHARED)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--gpu", "a100"), "--gpu a100: no kind 'a100' in params/cluster.yaml; valid: a100_40gb"),
        (("--gpu", "v100"), "--gpu v100: v100 has compute capability 7.0, and the torch of "
         "requirements.lock is built for 7.5 and newer; valid: a100_40gb, a100_80gb, h100"),
        (("--wall-hours", "0.2"), "--wall-hours 0.2: no time to train between start-up and tail; "
         "valid: more than 0.25"),
        (("--seeds", "0,7"), "--seeds 0,7: not all of it are seeds of scale paper; valid: 0, 1, 2"),
        (("--scale", "papr"), "no scale 'papr'; did you mean paper?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(project, options, says):
    done = project.smt("plan", "--scale", "paper", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and says in done.stderr, done.stderr


def test_runs_with_their_numbers_are_done_and_those_of_other_params_are_not(tmp_path, demo_data):
    project = ProjectCopy(tmp_path / "project")
    layout = Layout("demo", tmp_path / "project" / "results")
    runs = [Run(experiment=TINY, seed=seed) for seed in (0, 1)]

    def tiny():
        rows = csv.DictReader(io.StringIO(project.smt("plan", "--csv").stdout))
        return next((row["runs"], row["done"]) for row in rows if row["experiment"] == TINY)

    def finish(run, current):
        final = RunMetrics(
            experiment=run.experiment, seed=run.seed, scale="demo", fingerprint=current,
            task="classify", metrics={}, epochs=1, steps=1, images=64, weights_sha256="ab" * 32,
            wall_seconds=1.0, finished=1.0,
        )  # fmt: skip
        record.write(layout.metrics(run), final)

    finish(runs[0], "of what")
    assert tiny() == ("3", "1")  # without a manifest nothing says that it is of other params
    shutil.copytree(demo_data / "results" / "demo" / "data", layout.root / "data")
    assert tiny() == ("3", "0")
    digests = {"imagenet1k": read_json(layout.manifest("imagenet1k"))["digest"]}
    for run in runs:
        current = fingerprint.fingerprint(DEMO, run, digests)
        finish(run, current)
    assert tiny() == ("3", "2")
    layout.metrics(runs[1]).write_text("{")
    assert tiny() == ("3", "1")
    line = next(x for x in project.smt("plan").stdout.splitlines() if x.startswith(TINY))
    assert line.split()[-3:-1] == ["3", "2"]  # runs, to do


# --- params/cluster.yaml -----------------------------------------------------------------------

MISTAKES = {
    "unknown key": (
        "wall_hours: 24", "wall_hour: 24", "wall_hour", "unknown key; did you mean wall_hours"),
    "unknown key of a kind": (
        "    tflops: 125\n", "    tflop: 125\n", "kinds.v100.tflop",
        "unknown key; did you mean tflops"),
    "unknown key of a scale": (
        "    gpus: 8   ", "    gpu: 8   ", "scales.paper.gpu", "unknown key; did you mean gpus"),
    "unknown key of a share": (
        "{gpus: 16}", "{gpsu: 16}", "scales.paper.recipes.imagenet22k.gpsu",
        "unknown key; did you mean gpus"),
    "missing key": (
        "    efficiency: 0.026\n", "", "kinds.v100.efficiency", "this key is missing"),
    "more than the peak": (
        "efficiency: 0.026", "efficiency: 2.6", "kinds.v100.efficiency",
        "less than or equal to 1, found 2.6"),
    "experiment to recompute that is not there": (
        "    efficiency: 0.026\n", "    efficiency: 0.026\n    recompute: [imagenet1k_smt_tin]\n",
        "kinds.v100.recompute.0", "no experiment 'imagenet1k_smt_tin'; did you mean imagenet1k"),
    "recomputation that is no list": (
        "    efficiency: 0.026\n", "    efficiency: 0.026\n    recompute: true\n",
        "kinds.v100.recompute", "should be a list, found true"),
    "model of a speed that is not there": (
        "{smt_small: 1.10", "{smt_smal: 1.10", "speed.models.smt_smal",
        "no model 'smt_smal'; did you mean smt_small"),
    "kind that is not there": (
        "gpu: a100_80gb", "gpu: a100", "gpu",
        "no kind 'a100' in params/cluster.yaml; valid: a100_40gb"),
    "kind that the lock's torch is too new for": (
        "gpu: a100_80gb", "gpu: v100", "gpu", "v100 has compute capability 7.0"),
    "scale that is not there": (
        "  demo:\n    gpus: 1\n", "  dem:\n    gpus: 1\n", "scales.dem",
        "no scale 'dem'; did you mean demo"),
    "recipe that is not there": (
        "imagenet22k: {gpus: 16}", "imagenet21k: {gpus: 16}", "scales.paper.recipes.imagenet21k",
        "no recipe 'imagenet21k'; did you mean imagenet"),
    "experiment that is not there": (
        "    recipes:\n", "    experiments: {imagenet1k_smt_tin: {gpus: 4}}\n    recipes:\n",
        "scales.paper.experiments.imagenet1k_smt_tin",
        "no experiment 'imagenet1k_smt_tin'; did you mean imagenet1k_smt_tiny"),
    "no time to train": (
        "wall_hours: 24", "wall_hours: 0.25", "wall_hours",
        "0.25 leaves no time to train between start-up and tail (at scale paper); valid: more"),
    "gpus that cannot share a batch": (
        "{gpus: 16}", "{gpus: 12}", "scales.paper.recipes.imagenet22k.gpus",
        "12 GPUs cannot share the 32 micro-batches that make a global batch of recipe imagenet22k "
        "(imagenet22k_smt_large); valid: 1, 2, 4, 8, 16, 32, here or for it alone"),
    "gpus of an experiment that cannot": (
        "    recipes:\n", "    experiments: {imagenet1k_smt_small: {gpus: 16}}\n    recipes:\n",
        "scales.paper.experiments.imagenet1k_smt_small.gpus",
        "16 GPUs cannot share the 8 micro-batches that make a global batch of recipe imagenet1k "
        "(imagenet1k_smt_small); valid: 1, 2, 4, 8, here or for it alone"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_cluster_is_one_line_with_file_line_and_key(mistake, tmp_path):
    old, new, key, says = mistake
    project = ProjectCopy(tmp_path)
    project.edit("cluster.yaml", old, new)
    done = project.smt("check", "--scale", "paper")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and says in done.stderr, done.stderr
    where = re.match(r"smt: error: params/cluster.yaml:(\d+): (\S+): ", done.stderr)
    assert where is not None and where[2] == key, done.stderr
    named = (tmp_path / "params" / "cluster.yaml").read_text().splitlines()[int(where[1]) - 1]
    # A key that is missing has no line: there it is that of the record which lacks it.
    names = [part for part in key.split(".") if not part.isdigit()]  # a list's items have none
    assert re.search(rf"\b{names[-2 if 'missing' in says else -1]}: ?", named), named


def test_a_scale_that_the_cluster_does_not_have_is_asked_for(tmp_path):
    project = ProjectCopy(tmp_path)
    path = tmp_path / "params" / "cluster.yaml"
    content = yaml.safe_load(path.read_text())
    del content["scales"]["demo"]
    path.write_text(yaml.safe_dump(content))
    done = project.smt("plan", "--scale", "demo")
    assert done.returncode == 2
    assert "scales.demo: this key is missing; give it gpus, startup_minutes" in done.stderr
    assert project.smt("plan", "--scale", "paper").returncode == 0


COUNTED = "  retinanet.smt_small: 80911392\n"


def test_a_head_that_was_not_counted_is_one_line(tmp_path):
    project = ProjectCopy(tmp_path)
    project.edit("sizes.yaml", COUNTED, "")
    for command in ("check", "plan"):
        done = project.smt(command, "--scale", "demo")
        assert (done.returncode, done.stdout, done.stderr) == (
            2, "", "smt: error: params/sizes.yaml: demo.retinanet.smt_small is missing, which "
            "coco_retinanet_smt_small trains; count it: smt profile --update\n",
        )  # fmt: skip


@pytest.mark.slow
def test_profile_counts_a_head_that_was_not_counted(tmp_path):
    project = ProjectCopy(tmp_path)
    path = tmp_path / "params" / "sizes.yaml"
    counted = path.read_text()
    project.edit("sizes.yaml", COUNTED, "")
    assert project.smt("profile", "--update").returncode == 0
    assert path.read_text() == counted == (ROOT / "params" / "sizes.yaml").read_text()


def test_an_unknown_key_in_the_row_of_a_table_is_one_line_too(tmp_path):
    project = ProjectCopy(tmp_path)
    row = "{label: SMT-B, experiment: imagenet1k_smt_base}"
    project.edit("tables.yaml", row, row.replace("label", "lable"))
    done = project.smt("check")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "tables.imagenet1k.rows.2.lable: unknown key; did you mean label" in done.stderr


def test_an_experiment_s_share_comes_before_its_recipe_s(tmp_path):
    project = ProjectCopy(tmp_path)
    share = "    experiments: {imagenet22k_smt_large: {gpus: 32}}\n    recipes:\n"
    project.edit("cluster.yaml", "    recipes:\n", share)
    loaded = load_project(tmp_path / "params", "paper")
    assert [cost.gpus_of(loaded, name) for name in (LARGE, TINY)] == [32, 8]


def test_no_edit_of_the_cluster_changes_a_fingerprint(tmp_path):
    digests = dict.fromkeys((*PAPER.datasets, "class_map:imagenet22k_to_1k"), "0" * 64)

    def fingerprints(folder: Path):
        loaded = load_project(folder, "paper")
        return {str(run): fingerprint.fingerprint(loaded, run, digests) for run in loaded.runs}

    project = ProjectCopy(tmp_path)
    for old, new in (
        ("gpu: a100_80gb", "gpu: h100"),
        ("gpus_per_node: 8", "gpus_per_node: 4"),
        ("wall_hours: 24", "wall_hours: 3"),
        ("{gpus: 16}", "{gpus: 32}"),
        ("    gpus: 8   ", "    gpus: 4   "),
        ("    efficiency: 0.012\n", "    efficiency: 0.3\n"),
    ):
        project.edit("cluster.yaml", old, new)
    assert load_project(tmp_path / "params", "paper").cluster != CLUSTER
    assert fingerprints(tmp_path / "params") == fingerprints(ROOT / "params")
