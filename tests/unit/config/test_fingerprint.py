"""The fingerprint changes with the mathematics of a run, and with nothing else."""

import pytest

from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.load import load_project
from tests.helpers.project_copy import ProjectCopy

TINY, SMALL = "imagenet1k_smt_tiny", "imagenet1k_smt_small"
LARGE, AT_224, AT_384 = (
    "imagenet22k_smt_large", "imagenet1k_smt_large_224", "imagenet1k_smt_large_384",
)  # fmt: skip
FAMILY = {LARGE, AT_224, AT_384}
DETECTORS_OF_SMALL = {
    "coco_mask_rcnn_1x_smt_small", "coco_mask_rcnn_3x_smt_small",
    "coco_cascade_mask_rcnn_smt_small", "coco_retinanet_smt_small", "coco_atss_smt_small",
    "coco_sparse_rcnn_smt_small", "coco_dino_smt_small",
}  # fmt: skip
DETECTORS = DETECTORS_OF_SMALL | {"coco_mask_rcnn_1x_smt_base", "coco_mask_rcnn_3x_smt_base"}
SEGMENTERS = {"ade20k_upernet_smt_small", "ade20k_upernet_smt_base"}
FROM_SMALL = {SMALL, *DETECTORS_OF_SMALL, "ade20k_upernet_smt_small"}
DATA = {
    "imagenet1k": "1" * 64,
    "imagenet22k": "2" * 64,
    "coco": "4" * 64,
    "ade20k": "5" * 64,
    "class_map:imagenet22k_to_1k": "3" * 64,
}


@pytest.fixture
def project(tmp_path):
    return ProjectCopy(tmp_path)


def fingerprints(project, scale="paper", data=None):
    """Return the fingerprint of the first run of every experiment."""
    loaded = load_project(project.folder / "params", scale)
    return {
        name: fingerprint.fingerprint(
            loaded, Run(experiment=name, seed=loaded.seeds(name)[0]), data or DATA
        )
        for name in loaded.experiments
    }


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("scale", "least"), [("paper", 62), ("short", 62), ("demo", 24), ("smoke", 24)]
)
def test_every_run_has_its_own_fingerprint(project, scale, least):
    """Otherwise two experiments would be one run of MLflow."""
    loaded = load_project(project.folder / "params", scale)
    digests = {fingerprint.fingerprint(loaded, run, DATA) for run in loaded.runs}
    assert len(digests) == len(loaded.runs) >= least
    assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in digests)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("models.yaml", "title: SMT-T\n", "title: Tiny  # the small one\n"),
        ("recipes.yaml", "title: ImageNet-1K, 300 epochs at 224", "title: From scratch"),
        ("recipes.yaml", "deterministic: true", "deterministic: false"),
        ("experiments.yaml", "title: SMT-T on ImageNet-1K", "title: Hello"),
        ("data.yaml", "root: imagenet1k\n", "root: /another/disk\n"),
        ("recipes.yaml", "      lr: 1e-3\n", "      lr: 0.001\n"),
        ("scales.yaml", "  workers: null", "  workers: 3"),
        ("scales.yaml", "  log_every: 50\n", "  log_every: 1\n"),
        ("scales.yaml", "  keep_milestones: 10", "  keep_milestones: 0"),
        ("tables.yaml", "    title: ImageNet-1K\n", "    title: Results\n"),
        ("reported.yaml", "value: 82.2, source: release", "value: 82.3, source: release"),
        ("models.yaml", "    stem_kernel: 3\n    layer_scale: null\n",
         "    layer_scale: null\n    stem_kernel: 3\n"),
        ("heads.yaml", "    title: Mask R-CNN\n", "    title: Mask regions\n"),
        ("detection.yaml", "title: RetinaNet, COCO, 36 epochs", "title: RetinaNet, 3x"),
        ("segmentation.yaml", "title: UPerNet, ADE20K", "title: UPerNet"),
    ],
)  # fmt: skip
def test_cosmetic_edits_change_no_fingerprint(project, file, old, new):
    before = fingerprints(project)
    project.edit(file, old, new)
    assert fingerprints(project) == before


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        # One recipe: its runs, and those that start from them.
        ("recipes.yaml", "      lr: 1.25e-4\n", "      lr: 2e-4\n", FAMILY),
        ("recipes.yaml", "      lr: 2e-5\n", "      lr: 3e-5\n", {AT_384}),
        ("recipes.yaml", "      crop_ratio: 1.0\n", "      crop_ratio: 0.9\n", {AT_384}),
        ("detection.yaml", "      clip_norm: 0.1\n", "      clip_norm: 0.2\n",
         {"coco_dino_smt_small"}),
        ("segmentation.yaml", "      power: 1.0\n", "      power: 0.9\n", SEGMENTERS),
        # One head: its runs, and those of the heads that take from it; a classifier has none.
        ("heads.yaml", "    anchor_scale: 8\n", "    anchor_scale: 4\n", {"coco_atss_smt_small"}),
        ("heads.yaml", "    mask_threshold: 0.5\n", "    mask_threshold: 0.4\n",
         {name for name in DETECTORS if "mask_rcnn" in name}),
        ("heads.yaml", "    dropout: 0.1\n", "    dropout: 0.2\n", SEGMENTERS),
        # One model: its runs, those of the models that take from it, and what stands on them.
        ("models.yaml", "    depths: [3, 4, 18, 2] ", "    depths: [3, 4, 18, 1] ", FROM_SMALL),
        ("models.yaml", "    layer_scale: 1e-4\n", "    layer_scale: 1e-5\n",
         FAMILY | {"imagenet1k_smt_large"}),
        # One experiment.
        ("experiments.yaml", "on ImageNet-1K\n    model: smt_small\n    drop_path: 0.2\n",
         "on ImageNet-1K\n    model: smt_small\n    drop_path: 0.3\n", FROM_SMALL),
        ("data.yaml", "    classes: 21841\n", "    classes: 21842\n", {LARGE, AT_224, AT_384}),
        ("data.yaml", "    classes: 150\n", "    classes: 151\n", SEGMENTERS),
    ],
)  # fmt: skip
def test_mathematical_edits_change_the_runs_concerned_and_their_children(
    project, file, old, new, expected
):
    before = fingerprints(project)
    project.edit(file, old, new)
    assert changed(before, fingerprints(project)) == expected


def test_changed_data_change_the_runs_that_use_them_and_their_children(project):
    before = fingerprints(project)
    assert changed(before, fingerprints(project, data={**DATA, "imagenet22k": "f" * 64})) == FAMILY
    assert changed(
        before, fingerprints(project, data={**DATA, "class_map:imagenet22k_to_1k": "f" * 64})
    ) == {AT_224, AT_384}
    assert changed(before, fingerprints(project, data={**DATA, "coco": "f" * 64})) == DETECTORS
    assert changed(before, fingerprints(project, data={**DATA, "ade20k": "f" * 64})) == SEGMENTERS
    everything_else = set(before) - {LARGE}
    assert changed(before, fingerprints(project, data={**DATA, "imagenet1k": "f" * 64})) == (
        everything_else | {AT_224, AT_384}
    )


def test_an_overridden_drop_path_does_not_count(project):
    """Every experiment gives its own, so that of the recipe is never used."""
    before = fingerprints(project)
    project.edit("recipes.yaml", "    drop_path: 0.1\n", "    drop_path: 0.4\n")
    assert fingerprints(project) == before


def test_the_version_of_the_training_code_changes_every_fingerprint(project, monkeypatch):
    before = fingerprints(project)
    monkeypatch.setattr(fingerprint, "CODE_VERSION", fingerprint.CODE_VERSION + 1)
    assert changed(before, fingerprints(project)) == set(before)


def test_demo_and_paper_fingerprints_never_coincide(project):
    paper, demo = fingerprints(project, "paper"), fingerprints(project, "demo")
    assert not set(paper.values()) & set(demo.values())


def test_inputs_are_the_data_of_every_ancestor(project):
    loaded = load_project(project.folder / "params", "paper")

    def inputs_of(name):
        return set(fingerprint.inputs(loaded, Run(experiment=name, seed=0)))

    assert inputs_of(AT_384) == {"imagenet1k", "imagenet22k", "class_map:imagenet22k_to_1k"}
    assert inputs_of(TINY) == {"imagenet1k"}
    assert inputs_of("coco_dino_smt_small") == {"imagenet1k", "coco"}
    assert inputs_of("ade20k_upernet_smt_base") == {"imagenet1k", "ade20k"}
