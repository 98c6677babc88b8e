"""The meaning of BatchNorm's counters, against numbers worked out by hand."""

import pytest
import torch

from smt.models.imports import counters
from smt.models.imports.metadata import TrainingMetadata
from tests.helpers.params import project_at
from tests.helpers.released_files import configuration

PAPER = project_at("paper")

# 1,281,167 images // 1,024 = 1,251 steps, // 512 = 2,502; 14,197,122 // 1,024 = 13,864 passes.
IMAGENET1K = 300 * 1_251
IMAGENET22K = 90 * 13_864
FINETUNING = 30 * 2_502

TINY = "300 epochs of 1,251 steps of batch 1,024 on the 1,281,167 images of imagenet1k"
LARGE = "90 epochs of 13,864 forward passes of 1,024 images (4 a step) on the 14,197,122 images of"


def explain(count, *, classes=1000, epoch=None, config=None, **metadata):
    recorded = {} if epoch is None else {"epoch": epoch}
    facts = TrainingMetadata(recorded=recorded, config=config or {}, **metadata)
    return counters.explain(PAPER, count, classes, facts)


def finetuning(**options):
    return configuration(epochs=30, device_batch=64, rate=1e-5, **options)


@pytest.mark.parametrize(
    ("name", "passes_per_step", "count"),
    [
        ("imagenet1k", 1, IMAGENET1K),
        ("imagenet22k", 4, IMAGENET22K),
        ("imagenet22k_to_1k_224", 1, FINETUNING),
    ],
)
def test_the_constants_are_those_of_the_papers_recipes(name, passes_per_step, count):
    recipe = PAPER.recipes[name]
    steps = PAPER.datasets[recipe.dataset].train_images // recipe.global_batch
    assert recipe.schedule.epochs * steps * passes_per_step == count


def test_300_epochs_agree_with_the_metadata_of_the_release():
    explanation = explain(
        IMAGENET1K, epoch=299, config=configuration(),
        lr_scheduler={"t_initial": 369_045, "warmup_t": 6_255, "warmup_prefix": True,
                      "t_in_epochs": False},
        optimizer={"steps": 375_290},
    )  # fmt: skip
    assert explanation.meaning == f"{TINY}, as recipe imagenet1k"
    assert explanation.agrees == (
        "epoch 299 is recorded, counted from 0: 300 epochs done",
        "the config has 300 epochs",
        "the config has 128 images a GPU: 8 make 1,024",
        "the config's learning rate of 0.002 is that of recipe imagenet1k at batch 1,024",
        "the learning-rate schedule has 375,300 steps, 1,251 an epoch",
        "the optimizer has made 375,290 steps, 10 fewer than the counters",
    )
    assert explanation.contradictions == ()


def test_an_unfinished_training_is_as_long_as_its_epoch_says():
    explanation = explain(150 * 1_251, epoch=149, config=configuration())
    assert explanation.meaning.startswith("150 epochs of 1,251 steps of batch 1,024")
    assert "the config has 300 epochs, of which 150 are left" in explanation.agrees
    assert explanation.contradictions == ()


@pytest.mark.parametrize("epoch", [298, 149, 0])
def test_a_recorded_epoch_other_than_the_counters_is_a_contradiction(epoch):
    explanation = explain(IMAGENET1K, epoch=epoch, config=configuration())
    assert explanation.meaning == f"{TINY}, as recipe imagenet1k"
    assert explanation.contradictions == (
        f"epoch {epoch} is recorded, counted from 0: {epoch + 1} epoch{'s' if epoch else ''} done",
    )


def test_half_the_steps_of_the_recorded_epoch_are_a_contradiction():
    explanation = explain(150 * 1_251, epoch=299, config=configuration())
    assert explanation.meaning.startswith("150 epochs of 1,251 steps of batch 1,024")
    assert [text[:9] for text in explanation.contradictions] == ["epoch 299"]


def test_another_batch_size_is_inferred_from_the_epochs():
    # 1,281,167 // 768 = 1,668: 8 GPUs with 96 images each, at 2e-3 * 768 / 1,024.
    config = configuration(device_batch=96, rate=1.5e-3)
    explanation = explain(300 * 1_668, epoch=299, config=config)
    assert explanation.meaning.startswith("300 epochs of 1,668 steps of batch 768 on")
    assert "the config has 96 images a GPU: 8 make 768" in explanation.agrees
    assert explanation.contradictions == ()


def test_images_a_gpu_that_cannot_make_the_batch_are_a_contradiction():
    config = configuration(device_batch=100)
    explanation = explain(IMAGENET1K, epoch=299, config=config)
    assert explanation.contradictions == (
        "the config has 100 images a GPU, of which none make 1,024",
    )


def test_a_learning_rate_of_another_batch_is_a_contradiction():
    explanation = explain(IMAGENET1K, epoch=299, config=configuration(rate=1e-3))
    assert explanation.contradictions == (
        "the config's learning rate of 0.001 is that of recipe imagenet1k at batch 512",
    )


def test_more_steps_of_the_optimizer_than_of_the_counters_are_a_contradiction():
    explanation = explain(IMAGENET1K, epoch=299, optimizer={"steps": 375_301})
    assert explanation.contradictions == ("the optimizer has made 375,301 steps",)


def test_accumulated_batches_count_each_pass():
    config = configuration(epochs=90, rate=1e-3)
    config["DATA"]["DATASET"], config["MODEL"]["NUM_CLASSES"] = "imagenet22K", 21841
    config["TRAIN"]["ACCUMULATION_STEPS"] = 4
    explanation = explain(IMAGENET22K, classes=21841, epoch=89, config=config)
    assert explanation.meaning == f"{LARGE} imagenet22k, as recipe imagenet22k"
    assert "the config accumulates 4 passes a step" in explanation.agrees
    assert (
        "the config's learning rate of 0.001 is that of recipe imagenet22k at batch 4,096"
        in explanation.agrees
    )
    assert explanation.contradictions == ()


def test_counters_of_fine_tuning_continue_those_of_pretraining():
    explanation = explain(
        IMAGENET22K + FINETUNING, epoch=29, config=finetuning(pretrained="smt_large_22k.pth")
    )
    assert explanation.meaning == (
        f"{LARGE} imagenet22k, then 30 epochs of 2,502 steps of batch 512 on the 1,281,167 images "
        "of imagenet1k, as recipe imagenet22k then imagenet22k_to_1k_224 or as recipe imagenet22k "
        "then imagenet22k_to_1k_384"
    )
    assert explanation.contradictions == ()
    explanation = explain(IMAGENET22K + FINETUNING, epoch=29, config=finetuning())
    assert explanation.contradictions == ("the config names no pretrained weights",)
    explanation = explain(FINETUNING, epoch=29, config=finetuning(pretrained="a.pth"))
    assert explanation.contradictions == (
        "the config begins with the weights 'a.pth', and with their counters",
    )


def test_an_unknown_pretraining_has_the_steps_that_the_schedule_leaves():
    schedule = {"t_initial": 25 * 2_502, "warmup_t": 5 * 2_502, "warmup_prefix": True,
                "t_in_epochs": False}  # fmt: skip
    explanation = explain(
        99_999 + FINETUNING, epoch=29, config=finetuning(pretrained="a.pth"), lr_scheduler=schedule
    )
    assert explanation.meaning.startswith(
        "99,999 passes of the weights that it began with, then 30 epochs of 2,502 steps of batch"
    )
    assert explanation.contradictions == ()


def test_without_metadata_the_recipe_and_alternatives_are_named():
    explanation = explain(IMAGENET1K)
    assert explanation.meaning.startswith(
        f"{TINY}, as recipe imagenet1k; it could also be 150 epochs"
    )
    assert explanation.agrees == explanation.contradictions == ()


def test_a_partial_epoch_is_stated_in_epochs_and_steps():
    explanation = explain(IMAGENET1K - 1)
    assert "299 epochs of 1,251 steps of batch 1,024" in explanation.meaning
    assert explanation.meaning.endswith("and 1,250 steps")
    assert explanation.contradictions == ()
    assert explain(IMAGENET1K - 1, epoch=299).contradictions != ()


@pytest.mark.parametrize("count", [0, -1])
def test_counters_at_zero_contradict_an_epoch(count):
    assert explain(count, epoch=299).contradictions != ()
    assert explain(count) == counters.Explanation(
        "never trained, or its counters were set back", (), ()
    )


def test_a_head_of_other_classes_means_unknown_data():
    explanation = explain(IMAGENET1K, classes=10, epoch=299)
    assert explanation.meaning.startswith("not known: the head has 10 classes")
    assert explanation.contradictions == ()


def test_an_ambiguous_batch_size_is_stated_as_a_range():
    # 1,281,167 / 156 = 8,212.6 and / 157 = 8,160.3: 156 steps are of 8,161 to 8,212 images.
    explanation = explain(100 * 156, epoch=99)
    assert "100 epochs of 156 steps of batch 8,161 to 8,212" in explanation.meaning


def test_layers_are_grouped_by_their_counters():
    state = {
        "block1.0.attn.bn.num_batches_tracked": torch.tensor(5),
        "block1.1.attn.bn.num_batches_tracked": torch.tensor([5]),
        "block2.0.attn.bn.num_batches_tracked": torch.tensor(6),
        "odd.num_batches_tracked": torch.tensor(float("nan")),
        "none.num_batches_tracked": torch.empty(0, dtype=torch.int64),
    }
    assert counters.counts(state) == {
        5: ["block1.0.attn.bn", "block1.1.attn.bn"],
        6: ["block2.0.attn.bn"],
    }
