"""The DAG by dry runs of the real Snakemake: what it would run, and after which edits."""

import json
import shutil
import sys

import pytest
import yaml

from smt import dag
from smt.config.load import load_project
from tests.helpers import ROOT
from tests.helpers.finished_project import BESIDE
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.shrink import keep

pytestmark = pytest.mark.xdist_group("dag")  # what they share is made once

LARGE = "imagenet22k_smt_large"
AT_224, AT_384 = "imagenet1k_smt_large_224", "imagenet1k_smt_large_384"
DETECTOR, SEGMENTER = "coco_mask_rcnn_1x_smt_base", "ade20k_upernet_smt_base"
STARTS = {"imagenet1k_smt_small", "imagenet1k_smt_base"}
PAPER = ("--config", "scale=paper")


@pytest.fixture(scope="module")
def fresh_clone(tmp_path_factory):
    """A fresh clone: no data, no results. For tests that change nothing in it."""
    return ProjectCopy(tmp_path_factory.mktemp("bare") / "project")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, demo_data):
    """A project with all outputs of the demo. For tests to copy."""
    project = ProjectCopy(tmp_path_factory.mktemp("finished") / "project")
    (project.folder / "data").symlink_to(demo_data / "data")
    shutil.copytree(demo_data / "results", project.folder / "results")
    project.pretend_done()
    return project


@pytest.fixture
def finished_copy(finished, tmp_path):
    return finished.copy(tmp_path / "project")


# --- targets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["paper", "short"])
def test_paper_scale_plans_every_run_without_data(fresh_clone, scale):
    project = load_project(fresh_clone.folder / "params", scale)
    plan = fresh_clone.plan("all", "--config", f"scale={scale}")
    assert set(plan.trainings) == {(run.experiment, run.seed) for run in project.runs}
    assert len(plan.trainings) == 64
    assert {f"results/{scale}/runs/{run.experiment}/seed{run.seed}/evaluation.json"
            for run in project.runs} <= set(plan.pending)  # fmt: skip
    pictures = {path for path in plan.pending if path.endswith("/samples.jpg")}
    assert pictures == {
        f"results/{scale}/runs/{run.experiment}/seed{run.seed}/samples.jpg"
        for run in project.runs
        if project.experiments[run.experiment].head is not None
    }
    assert not (fresh_clone.folder / "results").exists()


def test_each_group_of_experiments_is_trained_by_its_own_rule(fresh_clone):
    project = load_project(fresh_clone.folder / "params", "demo")
    assert {name: rule for (name, _), rule in fresh_clone.plan("all").trainings.items()} == {
        name: experiment.group for name, experiment in project.experiments.items()
    }


@pytest.mark.parametrize(
    ("target", "trained"),
    [
        ("sizes", set()),
        ("data", set()),
        ("imagenet1k_smt_tiny", {"imagenet1k_smt_tiny"}),
        (AT_384, {LARGE, AT_384}),
        ("finetuning", {LARGE, AT_224, AT_384}),
        (DETECTOR, {"imagenet1k_smt_base", DETECTOR}),
        ("segmentation", {*STARTS, "ade20k_upernet_smt_small", SEGMENTER}),
        ("results/demo/tables/imagenet22k.md", {LARGE, AT_224, AT_384}),
        (f"results/demo/runs/{SEGMENTER}/seed0/samples.jpg", {"imagenet1k_smt_base", SEGMENTER}),
        ("results/demo/tables/drift.html", set()),
    ],
)
def test_a_target_trains_what_it_needs_and_nothing_else(fresh_clone, target, trained):
    assert fresh_clone.plan(target).experiments == trained


def test_detection_is_every_detector_and_what_they_start_from(fresh_clone):
    project = load_project(fresh_clone.folder / "params", "demo")
    detectors = {
        name for name, experiment in project.experiments.items() if experiment.task == "detect"
    }
    plan = fresh_clone.plan("detection")
    assert len(detectors) == 9 and plan.experiments == STARTS | detectors
    assert "results/demo/sizes.json" not in plan.outputs


def test_detectors_are_evaluated_by_a_rule_with_sample_sheets(
    fresh_clone,
):
    plan = fresh_clone.plan(DETECTOR)
    assert {
        path.removeprefix("results/demo/runs/"): rule
        for path, rule in plan.pending.items()
        if rule.startswith("evaluate")
    } == {
        f"{DETECTOR}/seed0/evaluation.json": "evaluate_downstream",
        f"{DETECTOR}/seed0/samples.jpg": "evaluate_downstream",
    }
    assert set(fresh_clone.plan("imagenet1k_smt_base").pending.values()) >= {"pretrain", "evaluate"}


def test_pictures_are_of_the_first_run_of_each_of_the_papers_models(fresh_clone):
    project = load_project(fresh_clone.folder / "params", "paper")
    models = {
        name
        for name, experiment in project.experiments.items()
        if experiment.group in ("pretrain", "finetune") and experiment.model in project.smt_models
    }
    plan = fresh_clone.plan("pictures", *PAPER)
    pictured = {path for path, rule in plan.pending.items() if rule == "look"}
    assert pictured == {f"results/paper/pictures/{name}-seed0/pictures.json" for name in models}
    assert set(plan.trainings) == {(name, 0) for name in models}
    assert pictured <= set(fresh_clone.plan("report", *PAPER).pending)
    other = "results/demo/pictures/ablation_heads_1-seed0/pictures.json"
    assert fresh_clone.plan(other).pending[other] == "look"


def test_rehearsals_run_only_on_request_and_without_data(fresh_clone):
    names = load_project(fresh_clone.folder / "params", "paper").order
    pending = fresh_clone.plan("rehearse", *PAPER).pending
    folder = "results/paper/rehearsal"
    rehearsed = {path for path, rule in pending.items() if rule == "rehearsal"}
    assert rehearsed == {f"{folder}/{name}.json" for name in names}
    tables = {path for path, rule in pending.items() if rule == "rehearsal_table"}
    assert tables == {f"{folder}/rehearsal.{suffix}" for suffix in ("html", "md", "csv", "tex")}
    assert len(pending) == len(rehearsed) + len(tables)
    assert not rehearsed & set(fresh_clone.plan("all", *PAPER).pending)


def test_a_rehearsal_is_made_again_when_its_params_change(tmp_path):
    project = ProjectCopy(tmp_path / "project")
    keep(project.folder / "params", ["imagenet1k_smt_tiny", "imagenet1k_smt_small"])
    smoke = ("--config", "scale=smoke")
    result = project.snakemake("rehearse", *smoke)
    assert result.returncode == 0, result.stderr
    folder = project.folder / "results/smoke/rehearsal"
    assert (folder / "rehearsal.html").is_file()
    record = json.loads((folder / "imagenet1k_smt_tiny.json").read_text())
    assert record["rehearsals"][0]["training_bytes"] > 0
    assert not project.plan("rehearse", *smoke).pending
    experiments = project.folder / "params" / "experiments.yaml"
    content = yaml.safe_load(experiments.read_text())
    content["experiments"]["imagenet1k_smt_small"]["title"] = "another"
    experiments.write_text(yaml.safe_dump(content))
    assert not project.plan("rehearse", *smoke).pending
    scales = project.folder / "params" / "scales.yaml"
    content = yaml.safe_load(scales.read_text())
    content["demo"]["experiments"]["imagenet1k_smt_small"]["drop_path"] = 0.07
    scales.write_text(yaml.safe_dump(content))
    pending = project.plan("rehearse", *smoke).pending
    assert [path for path in pending if path.endswith(".json")] == [
        "results/smoke/rehearsal/imagenet1k_smt_small.json"
    ]


def test_a_path_selects_one_seed_of_any_scale(fresh_clone):
    plan = fresh_clone.plan("results/paper/runs/imagenet1k_smt_small/seed2/metrics.json")
    assert set(plan.trainings) == {("imagenet1k_smt_small", 2)}
    assert not any(output.startswith("results/demo") for output in plan.outputs)


def test_tables_depend_on_all_of_their_experiments(fresh_clone):
    plan = fresh_clone.plan("tables")
    assert "results/demo/tables/index.html" in plan.pending
    assert plan.experiments == set(load_project(fresh_clone.folder / "params", "demo").experiments)


def test_tables_of_unfinished_runs_do_not_count_as_up_to_date(tmp_path):
    project = ProjectCopy(tmp_path / "project")
    assert project.smt("tables").returncode == 0
    assert project.plan("tables").tables >= {"imagenet1k", "imagenet22k", "ablation_heads"}


def test_seeds_in_the_configuration_select_runs(fresh_clone):
    plan = fresh_clone.plan("all", "--config", "scale=paper", "seeds=[0,2]")
    assert {seed for _, seed in plan.trainings} == {0, 2}
    assert len(plan.trainings) == 16 * 2 + 4 + 11 + 1


def test_among_all_tables_one_waits_for_the_seeds_of_its_intervals(monkeypatch):
    monkeypatch.setenv("SMT_PARAMS", str(ROOT / "params"))
    paper = dag.load("paper")
    inputs = {
        f"results/paper/runs/imagenet1k_smt_{variant}/seed{seed}/{name}.json"
        for variant in ("tiny", "small", "base") for seed in (0, 1, 2)
        for name in ("metrics", "evaluation")
    } | {
        f"results/paper/runs/imagenet1k_smt_large/seed0/{name}.json"
        for name in ("metrics", "evaluation")
    } | {"results/paper/sync/imagenet1k.done"}  # fmt: skip
    pooled = {
        f"results/paper/sync/ablation_{name}.done"
        for name in ("components", "heads", "stacking", "aggregation")
    }
    assert set(paper.report.table_inputs("imagenet1k")) == inputs
    assert set(paper.report.table_inputs("imagenet1k", among_all=True)) == inputs | pooled
    # One seed each, no verdicts, or one seed selected: no variance is pooled.
    for plan, table in ((paper, "coco_detectors"), (dag.load("demo"), "imagenet1k"),
                        (dag.load("paper", [0]), "imagenet1k")):  # fmt: skip
        assert plan.report.table_inputs(table, among_all=True) == plan.report.table_inputs(table)


# --- what is out of date -----------------------------------------------------------------------


def test_an_up_to_date_project_has_no_jobs(finished_copy):
    assert finished_copy.plan("all").pending == {}
    assert "Nothing to be done" in finished_copy.snakemake("all").stderr


def test_tables_with_intervals_come_last_and_are_remade_when_more_seeds_are_done(
    tmp_path, demo_data
):
    project = ProjectCopy(tmp_path / "project")
    path = project.folder / "params/scales.yaml"
    scales = yaml.safe_load(path.read_text())
    scales["demo"].update(notice=None, seeds=[0, 1])
    experiments, peer = scales["demo"]["experiments"], "imagenet1k_swin_tiny"
    scales["demo"]["experiments"] = {"*": {"seeds": [0, 1]}, peer: experiments[peer]}
    path.write_text(yaml.safe_dump(scales, sort_keys=False))
    (project.folder / "data").symlink_to(demo_data / "data")
    shutil.copytree(demo_data / "results", project.folder / "results")
    project.pretend_done()
    assert project.plan("all").pending == {}
    run = "results/demo/runs/ablation_heads_1/seed1"
    for name in ("metrics", "evaluation"):
        (project.folder / run / f"{name}.json").unlink()
    for target in ("all", "tables", "report"):
        plan = project.plan(target)
        assert set(plan.trainings) == {("ablation_heads_1", 1)}
        assert {"imagenet1k", "ablation_stacking"} <= plan.tables  # of one recipe
        assert not {"coco_detectors", "imagenet22k"} & plan.tables
    plan_of_table = project.plan("results/demo/tables/imagenet1k.html")
    assert plan_of_table.trainings == {} and plan_of_table.tables == {"imagenet1k"}


def test_a_change_of_titles_or_comments_trains_nothing(finished_copy):
    finished_copy.edit(
        "experiments.yaml", "title: SMT-T on ImageNet-1K", "title: The tiny one  # small"
    )
    finished_copy.edit(
        "recipes.yaml", "title: ImageNet-1K, 300 epochs at 224", "title: From scratch"
    )
    finished_copy.edit("models.yaml", "title: SMT-T\n", "title: Tiny\n")
    finished_copy.edit("data.yaml", "title: ImageNet-1K (ILSVRC 2012)", "title: The usual thousand")
    assert finished_copy.plan("all").trainings == {}


def test_a_changed_learning_rate_trains_its_runs_and_their_children(finished_copy):
    finished_copy.edit(
        "recipes.yaml", "      lr: 1.25e-4\n", "      lr: 1.25e-4\n      eps: 1e-7\n"
    )
    plan = finished_copy.plan("all")
    assert plan.experiments == {LARGE, AT_224, AT_384}
    assert plan.tables == {"imagenet22k", "claims"}
    assert set(plan.pending.values()) == {
        "pretrain", "finetune", "evaluate", "export", "table", "index", "plot", "look",
        "report_page",
    }  # fmt: skip


def test_a_changed_head_trains_its_runs_and_no_classifier(finished_copy):
    finished_copy.edit("heads.yaml", "    auxiliary_weight: 0.4\n", "    auxiliary_weight: 0.5\n")
    plan = finished_copy.plan("all")
    assert plan.trainings == {
        ("ade20k_upernet_smt_small", 0): "segment",
        (SEGMENTER, 0): "segment",
    }
    # Every table with measured sizes is made again, as they are measured together.
    assert plan.tables == {"ade20k", "coco_mask_rcnn", "coco_detectors", *BESIDE}


def test_a_change_of_the_title_of_a_head_trains_nothing(finished_copy):
    finished_copy.edit(
        "heads.yaml", "    title: UPerNet\n", "    title: Unified perceptual parsing\n"
    )
    assert finished_copy.plan("all").trainings == {}


def test_a_change_of_a_childs_recipe_trains_the_child_alone(finished_copy):
    finished_copy.edit("recipes.yaml", "      lr: 2e-5\n", "      lr: 2e-5\n      eps: 1e-7\n")
    assert finished_copy.plan("all").experiments == {AT_384}


def test_changed_data_train_their_runs_again(finished_copy):
    manifest = finished_copy.folder / "results/demo/data/imagenet22k.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "digest": "0" * 64}))
    assert finished_copy.plan("all").experiments == {LARGE, AT_224, AT_384}


def test_moved_data_train_nothing(finished_copy):
    shutil.move(finished_copy.folder / "data", finished_copy.folder / "elsewhere")
    finished_copy.edit("scales.yaml", "root: demo/imagenet1k\n", "root: moved/imagenet1k\n")
    assert finished_copy.plan("all").pending == {}


def test_a_changed_label_makes_its_table_again_and_trains_nothing(finished_copy):
    row = "{label: SMT-S, experiment: imagenet1k_smt_small}"
    finished_copy.edit("tables.yaml", row, row.replace("SMT-S", "SMT small"))
    plan = finished_copy.plan("all")
    assert (plan.tables, plan.trainings) == ({"imagenet1k"}, {})
    assert plan.pending["results/demo/report.html"] == "report_page"


def test_a_new_experiment_trains_itself_alone(finished_copy):
    finished_copy.edit(
        "experiments.yaml",
        "  ablation_heads_2:\n",
        "  ablation_paths:\n    base: ablation_heads_1\n    drop_path: 0.3\n  ablation_heads_2:\n",
    )
    assert set(finished_copy.plan("all").trainings.items()) == {(("ablation_paths", 0), "ablation")}


def test_jobs_run_without_an_activated_environment(tmp_path):
    project = ProjectCopy(tmp_path / "project")
    target = "results/demo/data/class_map_imagenet22k_to_1k.json"
    # A script's background processes ignore Ctrl-C, and a line states it.
    script = f"trap '' INT; exec {sys.executable} -m snakemake --cores 1 {target}"
    result = project.run("/bin/sh", "-c", script, PATH="/usr/bin:/bin")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("smt: Ctrl-C (SIGINT) is ignored") == 1
    assert json.loads((project.folder / target).read_text())["rows"] == list(range(0, 100, 11))
    log = project.folder / "results/demo/logs/data/class_map_imagenet22k_to_1k.manifest.log"
    assert "10 rows from imagenet22k to imagenet1k" in log.read_text()


# --- errors ------------------------------------------------------------------------------------


def error_line(result):
    """Return the one line of stderr that begins with `smt: error: `."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("smt: error: ")]
    assert result.returncode != 0
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    return lines[0]


def test_missing_data_are_named_before_the_first_job_starts(fresh_clone):
    message = error_line(fresh_clone.snakemake("all", *PAPER))
    for name in ("data/imagenet1k/train/", "data/imagenet1k/val/", "data/imagenet22k/train/",
                 "data/map22kto1k.txt", "SMT_DATA"):  # fmt: skip
        assert name in message
    assert "imagenet22k/val" not in message  # it has no validation split
    assert not (fresh_clone.folder / "results").exists()


def test_deleted_data_are_named_with_the_command_that_makes_them(finished_copy):
    (finished_copy.folder / "data").unlink()
    (finished_copy.folder / "results/demo/runs/ablation_heads_1/seed0/metrics.json").unlink()
    message = error_line(finished_copy.snakemake("all"))
    assert "data/demo/imagenet1k/train/" in message
    assert "smt data make imagenet1k --scale demo" in message


def test_params_are_checked_before_anything_runs(finished_copy):
    title = "SMT-S on ImageNet-1K\n    model: "
    line = 1 + finished_copy.edit("experiments.yaml", f"{title}smt_small\n", f"{title}smt_smal\n")
    message = error_line(finished_copy.snakemake("all"))
    assert f"params/experiments.yaml:{line}: " in message and "did you mean smt_small" in message


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("scale=papr", "did you mean paper"),
        ("seeds=[7]", "has no seed 7; valid: 0, "),
        ("sceds=[0]", "'sceds' was unexpected"),
        ("seeds=3", "not of type 'array'"),
    ],
)
def test_bad_configuration_is_one_line(fresh_clone, config, complaint):
    assert complaint in error_line(fresh_clone.snakemake("--dry-run", "all", "--config", config))


def test_an_experiment_may_not_have_the_name_of_a_rule(finished_copy):
    finished_copy.edit(
        "experiments.yaml",
        "  ablation_heads_2:\n",
        "  tables:\n    base: ablation_heads_1\n    drop_path: 0.3\n  ablation_heads_2:\n",
    )
    assert "experiments.tables: the DAG has a rule of this name" in error_line(
        finished_copy.snakemake("--dry-run", "all")
    )
