"""Mistakes in params/: each is one line with file, line, key and what is valid, and exit code 2."""

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest

from smt.config.load import load_project
from tests.helpers.params import project_at
from tests.helpers.project_copy import ProjectCopy


@dataclass(frozen=True)
class Mistake:
    """An edit of params/, and the key and text that the message has to contain."""

    file: str
    old: str
    new: str
    key: str
    message: str
    scale: str = "paper"
    line: int = 0
    """Lines between the first line of `old` and the one that the message names."""


RECOMPUTE = """\
    recompute: false                     # true: less memory, more time, the same numbers
    compile: false                       # true: torch.compile of each block; minutes at the start
"""

MISTAKES = {
    "unknown model": Mistake(
        "experiments.yaml", "on ImageNet-1K\n    model: smt_small\n",
        "on ImageNet-1K\n    model: smt_smal\n",
        "experiments.imagenet1k_smt_small.model", "no model 'smt_smal'; did you mean smt_small",
        line=1,
    ),
    "unknown recipe": Mistake(
        "experiments.yaml", "recipe: imagenet22k\n", "recipe: imagenet21k\n",
        "experiments.imagenet22k_smt_large.recipe",
        "no recipe 'imagenet21k'; did you mean imagenet1k or",
    ),
    "unknown data set": Mistake(
        "recipes.yaml", "dataset: imagenet22k\n", "dataset: imagenet21k\n",
        "recipes.imagenet22k.dataset", "no dataset 'imagenet21k'; did you mean imagenet1k or",
    ),
    "unknown key": Mistake(
        "recipes.yaml", "clip_norm: 5.0\n", "clip_nrm: 5.0\n",
        "recipes.imagenet1k.optimizer.clip_nrm", "unknown key; did you mean clip_norm",
    ),
    "unknown key of an entry": Mistake(
        "models.yaml", "    stem_kernel: 3\n", "    stem_kernel: 3\n    stem_kernal: 3\n",
        "models.smt_tiny.stem_kernal", "unknown key; did you mean stem_kernel", line=1,
    ),
    "missing key": Mistake(
        "recipes.yaml", "    precision: fp16\n", "",
        "recipes.imagenet1k.precision", "this key is missing", line=-6,
    ),
    "wrong type": Mistake(
        "recipes.yaml", "weight_decay: 0.05\n", "weight_decay: strong\n",
        "recipes.imagenet1k.optimizer.weight_decay", 'valid number, found "strong"',
    ),
    "out of range": Mistake(
        "recipes.yaml", "random_erasing: 0.25\n", "random_erasing: 25\n",
        "recipes.imagenet1k.augment.random_erasing", "less than or equal to 1, found 25",
    ),
    "not one of the choices": Mistake(
        "models.yaml", "    aggregation: dense\n", "    aggregation: thick\n",
        "models.smt_tiny_aggregation_dense.aggregation", "'saa', 'none'",
    ),
    "heads that do not divide": Mistake(
        "models.yaml", "    msa_heads: [2, 4, 8, 16] ", "    msa_heads: [2, 4, 7, 16] ",
        "models.smt_tiny.msa_heads",
        "7 heads do not divide the 256 channels of stage 3; valid: 1, 2, 4, 8,",
    ),
    "heads that do not divide at another scale": Mistake(
        "models.yaml", "    msa_heads: [2, 4, 8, 16] ", "    msa_heads: [2, 4, 128, 16] ",
        "models.smt_tiny.msa_heads", "128 heads do not divide the 64 channels of stage 3; valid: "
        "1, 2, 4, 8, 16, 32, 64 (at scale demo)", scale="demo",
    ),
    "batches that do not divide": Mistake(
        "recipes.yaml", "device_batch: 128\n", "device_batch: 100\n",
        "recipes.imagenet1k.device_batch", "100 does not divide the global batch of 1024",
    ),
    "too much warm-up": Mistake(
        "recipes.yaml", "epochs: 90\n", "epochs: 5\n",
        "recipes.imagenet22k.schedule.warmup_epochs",
        "5 epochs of warm-up in a run of 5",
        line=-1,
    ),
    "an evaluation that is drawn": Mistake(
        "detection.yaml", "      rescale: {short: [800], long: 1333}\n",
        "      rescale: {short: [800, 640], long: 1333}\n",
        "detection_recipes.mask_rcnn_1x.evaluation.rescale.short",
        "list should have at most 1 item after validation, not 2, found [800, 640]",
    ),
    "bounds the wrong way round": Mistake(
        "segmentation.yaml", "        contrast: [0.5, 1.5]\n", "        contrast: [1.5, 0.5]\n",
        "segmentation_recipes.upernet_160k.augment.photometric.contrast",
        "list should be low, then high, found [1.5, 0.5]",
    ),
    "a crop without a size": Mistake(
        "detection.yaml", "          crop: {smallest: 384, largest: 600}\n",
        "          crop: {smallest: 700, largest: 600}\n",
        "detection_recipes.mask_rcnn_3x.augment.policies.1.crop.smallest",
        "700 is more than largest, 600",
    ),
    "a milestone after the end": Mistake(
        "detection.yaml", "milestones: [8, 11]", "milestones: [8, 12]",
        "detection_recipes.mask_rcnn_1x.schedule.milestones.1", "epoch 12 in a run of 12",
    ),
    "an interval that does not divide": Mistake(
        "segmentation.yaml", "      interval: 16000\n", "      interval: 17000\n",
        "segmentation_recipes.upernet_160k.schedule.interval",
        "17000 does not divide the 160000 steps",
    ),
    "a claim about a number that there is not": Mistake(
        "claims.yaml", "formula: imagenet1k_smt_base.top1 >= 84.3",
        "formula: imagenet1k_smt_bass.top1 >= 84.3",
        "claims.smt_base_accuracy.formula",
        "no number 'imagenet1k_smt_bass.top1'; did you mean imagenet1k_smt_base.top1",
    ),
    "a claim that is no formula": Mistake(
        "claims.yaml", "formula: imagenet1k_smt_base.top1 >= 84.3",
        "formula: imagenet1k_smt_base.top1 => 84.3",
        "claims.smt_base_accuracy.formula", ".formula: not a formula (invalid syntax); valid: comp",
    ),
    "a claim that divides by 0": Mistake(
        "claims.yaml", "formula: imagenet1k_smt_base.top1 >= 84.3",
        "formula: imagenet1k_smt_base.top1 / 0 >= 84.3", "claims.smt_base_accuracy.formula",
        ".formula: imagenet1k_smt_base.top1 / 0 divides by 0; valid: comparisons",
    ),
    "a claim about no number": Mistake(
        "claims.yaml", "formula: imagenet1k_smt_base.top1 >= 84.3", "formula: 1 >= 84.3",
        "claims.smt_base_accuracy.formula", ".formula: 1 >= 84.3 is about no number of the tables",
    ),
    "a claim with a number that is too large": Mistake(
        "claims.yaml", "formula: imagenet1k_smt_base.top1 >= 84.3",
        "formula: imagenet1k_smt_base.top1 >= 1e999", "claims.smt_base_accuracy.formula",
        ".formula: a number above 1.8e+308; valid: comparisons",
    ),
    "another's number without a source": Mistake(
        "peers.yaml", "results: {top1: 78.7}, source: rmt_table_1,",
        "results: {top1: 78.7}, source: rmt_tabel_1,",
        "peer_tables.peers_imagenet1k.peers.pvt_v2_b1.source",
        "no source 'rmt_tabel_1' in reported.yaml; did you mean rmt_table_1",
    ),
    "another's number of no metric": Mistake(
        "peers.yaml", "results: {top1: 78.7}, source", "results: {top_1: 78.7}, source",
        "peer_tables.peers_imagenet1k.peers.pvt_v2_b1.results.top_1",
        "no such metric; did you mean top1",
    ),
    "a speed of a model that does not exist": Mistake(
        "reported.yaml", "  peers_imagenet1k.cmt_s: {", "  peers_imagenet1k.cmt_x: {",
        "throughput.peers_imagenet1k.cmt_x",
        "no model or peer 'peers_imagenet1k.cmt_x'; did you mean peers_imagenet1k.cmt_s",
    ),
    "notation of RandAugment": Mistake(
        "recipes.yaml", "rand_augment: rand-m9-mstd0.5-inc1\n", "rand_augment: randaug-9\n",
        "recipes.imagenet1k.augment.rand_augment", "valid: rand-m9-mstd0.5-inc1",
    ),
    "compiled and computed again": Mistake(
        "recipes.yaml", RECOMPUTE, RECOMPUTE.replace("false", "true"),
        "recipes.imagenet1k.recompute", "true with compile: true",
    ),
    "key given twice": Mistake(
        "recipes.yaml", "    precision: fp16\n", "    precision: fp16\n    precision: bf16\n",
        "", "key 'precision' is given twice", line=1,
    ),
    "not YAML": Mistake(
        "models.yaml", "widths: [96, 192, 384, 768]", "widths: [96, 192, 384, 768",
        "", "not valid YAML", line=1,
    ),
    "a name for a shell": Mistake(
        "models.yaml", "  smt_tiny_heads_8:\n", '  "smt_tiny;heads":\n',
        "models.smt_tiny;heads", "a name is lower-case letters, digits and _",
    ),
    "base that is not there": Mistake(
        "models.yaml", "    base: smt_base\n", "    base: smt_bass\n",
        "models.smt_large.base", "no entry 'smt_bass'; did you mean smt_base",
    ),
    "circle of bases": Mistake(
        "models.yaml", "  smt_tiny_heads_1:\n",
        "  egg:\n    base: hen\n  hen:\n    base: egg\n  smt_tiny_heads_1:\n",
        "models.hen.base", "bases form a cycle: egg -> hen -> egg", line=3,
    ),
    "circle of starts": Mistake(
        "experiments.yaml", "    recipe: imagenet22k\n",
        "    recipe: imagenet22k\n"
        "    start: {experiment: imagenet1k_smt_large_224, class_map: null}\n",
        "experiments.imagenet22k_smt_large.start", "start from each other in a cycle: ", line=1,
    ),
    "start from another model": Mistake(
        "experiments.yaml", "      experiment: imagenet22k_smt_large\n",
        "      experiment: imagenet1k_smt_tiny\n",
        "experiments.imagenet1k_smt_large_224.start", "trains smt_tiny, this one smt_large",
        line=-1,
    ),
    "start without a class map": Mistake(
        "experiments.yaml", "class_map: imagenet22k_to_1k\n", "class_map: null\n",
        "experiments.imagenet1k_smt_large_224.start.class_map",
        "imagenet22k has 21841 classes and imagenet1k 1000",
    ),
    "overlay of what is not there": Mistake(
        "scales.yaml", "    smt_base:\n", "    smt_bse:\n",
        "demo.models.smt_bse", "no such entry in models.yaml; did you mean smt_base", scale="demo",
    ),
    "overlay of what is not there, of a scale on another": Mistake(
        "scales.yaml", "    dino_1x: {title: \"DINO, a few", "    dino_x: {title: \"DINO, a few",
        "smoke.detection_recipes.dino_x", "no such entry in detection.yaml", scale="smoke",
    ),
    "scale on one that is not there": Mistake(
        "scales.yaml", "  base: demo\n", "  base: dem\n",
        "smoke.base", "no scale 'dem'; did you mean demo", scale="smoke",
    ),
    "scale on itself": Mistake(
        "scales.yaml", "  base: demo\n", "  base: smoke\n",
        "smoke.base", "bases form a cycle: smoke -> smoke", scale="smoke",
    ),
    "key that no scale has": Mistake(
        "scales.yaml", "  log_every: 5\n", "  log_evry: 5\n",
        "smoke.log_evry", "unknown key; did you mean log_every", scale="smoke",
    ),
    "first rung that is not there": Mistake(
        "scales.yaml", "  first_rung: short ", "  first_rung: shrt ",
        "paper.first_rung", "no scale 'shrt'; did you mean short",
    ),
    "spread of what is not measured": Mistake(
        "claims.yaml", "  miou_ms:\n", "  miou_mss:\n",
        "assumed_spreads.miou_mss", "no metric 'miou_mss'; did you mean miou_ms",
    ),
    "spread of 0": Mistake(
        "claims.yaml", "    std: 0.15\n", "    std: 0\n",
        "assumed_spreads.box_ap.std", "input should be greater than 0, found 0",
    ),
    "row of an unknown experiment": Mistake(
        "tables.yaml", "experiment: ablation_heads_8}", "experiment: ablation_head_8}",
        "tables.ablation_heads.rows.4.experiment", "did you mean ablation_heads_8",
    ),
    "row of an experiment of another task": Mistake(
        "tables.yaml", "experiment: ablation_heads_8}", "experiment: ade20k_upernet_smt_base}",
        "tables.ablation_heads.rows.4.experiment",
        "ade20k_upernet_smt_base has none of this table's metrics, top1; it has: miou, "
        "mean_accuracy, pixel_accuracy, miou_ms, mean_accuracy_ms, pixel_accuracy_ms",
    ),
    "published number without its source": Mistake(
        "reported.yaml", "top1: {value: 88.1, source: release_readme}",
        "top1: {value: 88.1, source: hearsay}",
        "experiments.imagenet1k_smt_large_384.top1.source", "no source 'hearsay'",
    ),
    "published number of what is not measured": Mistake(
        "reported.yaml", "box_ap: {value: 47.3,", "mask_ap: {value: 47.3,",
        "experiments.coco_retinanet_smt_small.mask_ap",
        "coco_retinanet_smt_small is not evaluated by it; valid: box_ap, box_ap50, ",
    ),
    "derived number for a table that there is not": Mistake(
        "reported.yaml", "80.8, source: summary_derived, derived_for: [ablation_components]}",
        "80.8, source: summary_derived, derived_for: [ablation_ladder]}",
        "experiments.ablation_ladder_mhmc.top1.derived_for.0",
        "no table 'ablation_ladder' with a row of ablation_ladder_mhmc; valid: ablation_components",
    ),
    "derived number for a table that does not show it": Mistake(
        "reported.yaml", "80.8, source: summary_derived, derived_for: [ablation_components]}",
        "80.8, source: summary_derived, derived_for: [ablation_stacking]}",
        "experiments.ablation_ladder_mhmc.top1.derived_for.0",
        "no table 'ablation_stacking' with a row of ablation_ladder_mhmc; did you mean ",
    ),
    "channels that GroupNorm cannot share": Mistake(
        "heads.yaml", "    title: DINO, 4 scales\n    channels: 256\n",
        "    title: DINO, 4 scales\n    channels: 272\n",
        "heads.dino.channels", "272 is no multiple of 32; valid: 32, 64, ...", line=1,
    ),
    "two names of one training": Mistake(
        "experiments.yaml", "    model: smt_tiny_heads_2\n", "    model: smt_tiny_heads_1\n",
        "experiments.ablation_heads_2",
        "at scale paper it trains exactly what ablation_heads_1 does", line=-3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_with_its_location_and_valid_values(mistake, tmp_path):
    project = ProjectCopy(tmp_path)
    line = project.edit(mistake.file, mistake.old, mistake.new) + mistake.line
    result = project.smt("check", "--scale", mistake.scale)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr, result.stderr
    location = re.match(r"smt: error: params/(\w+\.yaml):(\d+): (.*)", result.stderr)
    assert location is not None, result.stderr
    assert mistake.message in location[3] and mistake.key in location[3]
    assert (location[1], int(location[2])) == (mistake.file, line), result.stderr


def test_an_unknown_scale_lists_the_nearest(tmp_path):
    result = ProjectCopy(tmp_path).smt("check", "--scale", "papr")
    assert result.returncode == 2
    assert result.stderr == (
        "smt: error: params/scales.yaml: no scale 'papr'; did you mean paper?\n"
    )


def test_a_missing_params_file_names_the_remedy(tmp_path):
    project = ProjectCopy(tmp_path)
    (project.folder / "params" / "tables.yaml").unlink()
    result = project.smt("check")
    assert result.returncode == 2
    assert result.stderr == (
        "smt: error: params/tables.yaml: no such file; run from the project's root, or give "
        "--params DIR\n"
    )


def test_numbers_with_an_exponent_and_no_point_are_numbers(tmp_path):
    """PyYAML on its own reads 1e-3 as text."""
    project = ProjectCopy(tmp_path)
    project.edit("recipes.yaml", "      lr: 1e-3\n", "      lr: 1E-3\n")
    assert load_project(tmp_path / "params", "paper").recipes["imagenet1k"].optimizer.lr == 0.001


def test_an_entry_inherits_from_its_base():
    recipes: dict[str, Any] = project_at("paper").recipes
    recipe, base = recipes["imagenet22k"], recipes["imagenet1k"]
    assert (recipe.optimizer.lr, recipe.schedule.epochs) == (1.25e-4, 90)
    assert recipe.optimizer.betas == base.optimizer.betas
    assert recipe.augment == base.augment


def test_a_derived_number_is_shown_only_in_its_table():
    project = project_at("paper")
    published = project.reported_value("ablation_stage3_msa", "top1")
    ladder = project.reported_value("ablation_stage3_msa", "top1", "ablation_components")
    assert published is None and (ladder.value, ladder.source) == (81.6, "summary_derived")
    assert project.reported_value("ablation_stage3_msa", "top1", "ablation_stacking") is None
    tiny = project.reported_value("imagenet1k_smt_tiny", "top1")
    assert tiny == project.reported_value("imagenet1k_smt_tiny", "top1", "ablation_components")
    assert tiny.value == 82.2


def test_the_demo_changes_sizes_of_models_but_not_their_structure():
    paper, demo = (project_at(scale) for scale in ("paper", "demo"))
    assert set(paper.experiments) == set(demo.experiments)
    assert demo.models["smt_tiny_heads_8"].widths == demo.models["smt_tiny"].widths
    for name, model in paper.smt_models.items():
        changed = {
            key for key, value in model.model_dump().items()
            if value != getattr(demo.models[name], key)
        }  # fmt: skip
        assert changed <= {"widths", "depths", "msa_heads", "mlp_ratios"}, name


def test_a_scale_overlays_its_base():
    demo, smoke = (project_at(scale) for scale in ("demo", "smoke"))
    assert set(smoke.experiments) == set(demo.experiments)
    assert (smoke.scale.title, smoke.scale.log_every) == ("smoke scale", 5)
    assert smoke.scale.seeds == demo.scale.seeds
    assert smoke.scale.proof.runs == demo.scale.proof.runs
    # An entry for all ("*") in the scale overrides single entries of its base.
    assert demo.recipes["imagenet22k"].schedule.epochs > 1
    assert smoke.recipes["imagenet22k"].schedule.epochs == 1
    assert smoke.recipes["imagenet22k"].optimizer == demo.recipes["imagenet22k"].optimizer
    places = {dataset.root for project in (demo, smoke) for dataset in project.datasets.values()}
    assert len(places) == 2 * len(demo.datasets)  # of other counts, so apart


def test_every_detector_of_the_demo_is_evaluated_often_enough_for_a_curve():
    demo = project_at("demo")
    for name, experiment in demo.experiments.items():
        if experiment.task == "detect":
            recipe = demo.recipe_of(name)
            assert math.ceil(recipe.schedule.epochs / recipe.eval_every) >= 2, name
