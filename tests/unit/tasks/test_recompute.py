"""Recomputation of blocks in backward passes: the same bytes after a few steps."""

import pytest
import torch

from smt.engine.distributed import Ranks
from smt.engine.preempt import StopRequest
from smt.engine.progress import Progress
from smt.engine.trainer import Settings, Trainer
from smt.models.smt import Stage
from smt.tasks.synthetic import Synthetic
from tests.helpers.params import project_at

PROJECT = project_at("smoke")
CPU, STEPS = torch.device("cpu"), 3
TINY, LARGE = "imagenet1k_smt_tiny", "imagenet22k_smt_large"


def train(folder, experiment, project=PROJECT, **changes):
    """Return the bytes of weights, running statistics and moments, and the journal."""
    folder.mkdir()
    torch.manual_seed(0)
    task = Synthetic(project, experiment, CPU, images=4, size=(64, 64), **changes)
    ranks = Ranks(0, 1, CPU)
    trainer = Trainer(
        task, folder, seed=0, ranks=ranks, settings=Settings(log_every=1, checkpoint_seconds=1e9),
        stop=StopRequest(),
    )  # fmt: skip
    batches = task.micro_batches()
    progress = Progress(experiment, epochs=1, epoch_images=STEPS * 4, ranks=ranks)
    losses = [trainer.step(batches, progress).loss for _ in range(STEPS)]
    moments = [
        value for state in trainer.state.optimizer.state.values() for value in state.values()
    ]
    tensors = [*task.model.state_dict().values(), *moments]
    assert all(torch.isfinite(tensor).all() for tensor in tensors)
    journal = (folder / "journal.jsonl").read_bytes()
    return losses, [tensor.numpy().tobytes() for tensor in tensors], journal


def with_drop_path(experiment):
    entry = PROJECT.experiments[experiment].model_copy(update={"drop_path": 0.5})
    return PROJECT.model_copy(update={"experiments": {**PROJECT.experiments, experiment: entry}})


@pytest.mark.parametrize(
    ("experiment", "changes"),
    [
        (TINY, {}), (TINY, {"precision": "bf16"}), (LARGE, {}),
        ("ablation_stage3_msa", {}), ("ablation_aggregation_dense", {}),
        ("coco_mask_rcnn_1x_smt_small", {}),
        ("coco_mask_rcnn_1x_smt_small", {"drop_path_mode": "dropout"}),
        ("coco_cascade_mask_rcnn_smt_small", {}), ("coco_retinanet_smt_small", {}),
        ("coco_atss_smt_small", {}), ("coco_sparse_rcnn_smt_small", {}),
        ("coco_dino_smt_small", {}),
        ("ade20k_upernet_smt_small", {}),
        ("ade20k_upernet_smt_small", {"drop_path_mode": "dropout"}),
    ],
)  # fmt: skip
def test_recomputation_gives_the_same_bytes(tmp_path, experiment, changes):
    project = with_drop_path(experiment)
    outcomes = [
        train(tmp_path / str(recompute), experiment, project, recompute=recompute, **changes)
        for recompute in (False, True)
    ]
    assert outcomes[0] == outcomes[1]
    assert len(set(outcomes[0][0])) == STEPS, "a step changed nothing"


def test_recomputation_runs_every_block_twice(tmp_path):
    def forward_calls(recompute):
        task = Synthetic(PROJECT, TINY, CPU, images=2, recompute=recompute)
        calls = []
        for stage in task.model.modules():
            if isinstance(stage, Stage):
                for block in stage.blocks:
                    block.mixer.register_forward_hook(lambda *_: calls.append(1))
        task.loss(task.model, next(task.micro_batches())).backward()
        return len(calls)

    blocks = sum(PROJECT.models["smt_tiny"].depths)
    assert (forward_calls(False), forward_calls(True)) == (blocks, 2 * blocks)


def test_recomputation_is_set_by_the_recipe_or_the_kind_of_gpu():
    kind = PROJECT.cluster.kind.model_copy(update={"recompute": (TINY,)})
    cluster = PROJECT.cluster.model_copy(
        update={"kinds": {**PROJECT.cluster.kinds, PROJECT.cluster.gpu: kind}}
    )
    with_kind = PROJECT.model_copy(update={"cluster": cluster})
    assert with_kind.recomputes(TINY, on_gpu=True)
    assert not with_kind.recomputes(TINY, on_gpu=False), "a CPU is not that GPU"
    assert not with_kind.recomputes(LARGE, on_gpu=True)
    assert not PROJECT.recomputes(TINY, on_gpu=True)
    recipes = {
        name: recipe.model_copy(update={"recompute": True})
        for name, recipe in PROJECT.recipes.items()
    }
    assert PROJECT.model_copy(update={"recipes": recipes}).recomputes(TINY, on_gpu=False)
