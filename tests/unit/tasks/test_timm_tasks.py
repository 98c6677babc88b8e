"""Experiments whose model is of timm: trained under every head, and resumed."""

import pytest
import torch

from smt.commands import check, profile
from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.models import TimmModel
from smt.datasets import manifest
from smt.engine import optim
from smt.engine.distributed import Ranks
from smt.engine.preempt import StopRequest
from smt.engine.progress import Progress
from smt.engine.protocol import MicroBatch
from smt.engine.trainer import Settings, Trainer, TrainingStopped
from smt.errors import UserError
from smt.models import weights
from smt.models.smt import set_recompute
from smt.runs.paths import Layout
from smt.tasks import sizes
from smt.tasks.network import head_names, network
from smt.tasks.sizes import require_peers, require_trainable
from smt.tasks.synthetic import Synthetic
from smt.tasks.training import Options, RunTraining
from tests.helpers.params import project_at

PROJECT = project_at("smoke")
CPU = torch.device("cpu")
PEER = "imagenet1k_swin_tiny"
SWIN = PROJECT.models[PROJECT.experiments[PEER].model]
RESNET = TimmModel(
    timm="resnet18", title="ResNet", name="resnet18",
    arguments={"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]},
)  # fmt: skip
HEADS = {
    "coco_mask_rcnn_1x_smt_small", "coco_cascade_mask_rcnn_smt_small", "coco_retinanet_smt_small",
    "coco_atss_smt_small", "coco_sparse_rcnn_smt_small", "coco_dino_smt_small",
    "ade20k_upernet_smt_small",
}  # fmt: skip


def with_model(experiment, model, **changes):
    """Return the project in which an experiment trains another model, from scratch."""
    changes = {"model": "other", "start": None, **changes}
    entry = PROJECT.experiments[experiment].model_copy(update=changes)
    return PROJECT.model_copy(
        update={
            "models": {**PROJECT.models, "other": model},
            "experiments": {**PROJECT.experiments, experiment: entry},
        }
    )


class Keyed(Synthetic):
    """Batches by their step, so that a resumed training sees the same ones."""

    steps_per_epoch = 3

    def __init__(self, *arguments, stop=None, stop_at=None, **options):
        super().__init__(*arguments, **options)
        self.stop, self.stop_at = stop, stop_at

    def micro_batches(self, epoch=0, start_step=0):
        for step in range(start_step, self.steps_per_epoch):
            if epoch * self.steps_per_epoch + step == self.stop_at:
                self.stop.signal = 15
            torch.manual_seed(100 * epoch + step)
            yield MicroBatch(self._inputs(), self.images, (epoch, step, 0))


def train(folder, project, experiment, *, stop_at=None):
    """Return the weights, moments and journal of two epochs, or stop before."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    stop = StopRequest()
    task = Keyed(project, experiment, CPU, images=4, size=(32, 32), stop=stop, stop_at=stop_at)
    trainer = Trainer(
        task, folder, seed=0, ranks=Ranks(0, 1, CPU), stop=stop,
        settings=Settings(log_every=1, checkpoint_seconds=1e9),
    )  # fmt: skip
    with Progress(experiment, epochs=2, epoch_images=12, ranks=trainer.ranks) as progress:
        trainer.train(progress)
    slots = trainer.state.optimizer.state_dict()["state"]
    moments = [slots[index][slot] for index in sorted(slots) for slot in sorted(slots[index])]
    tensors = [*task.model.state_dict().values(), *moments]
    return [tensor.numpy().tobytes() for tensor in tensors], (folder / "journal.jsonl").read_bytes()


@pytest.mark.parametrize("model", [SWIN, RESNET], ids=["swin", "resnet"])
@pytest.mark.parametrize("stop_at", [1, 4])
def test_stopped_and_resumed_a_model_of_timm_ends_with_the_same_bytes(tmp_path, model, stop_at):
    project = with_model("imagenet1k_smt_small", model, drop_path=0.3)
    arguments = project, "imagenet1k_smt_small"
    whole = train(tmp_path / "whole", *arguments)
    with pytest.raises(TrainingStopped):
        train(tmp_path / "cut", *arguments, stop_at=stop_at)
    assert train(tmp_path / "cut", *arguments) == whole


@pytest.mark.parametrize("experiment", sorted(HEADS))
@pytest.mark.parametrize("model", [SWIN, RESNET], ids=["swin", "resnet"])
def test_every_head_trains_on_a_backbone_of_timm(experiment, model):
    task = Synthetic(with_model(experiment, model), experiment, CPU, images=2, size=(64, 64))
    loss = task.loss(task.model, next(task.micro_batches()))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(value.grad is not None for value in task.model.backbone.parameters())


def test_weights_that_timm_exempts_do_not_decay():
    model = network(PROJECT, PEER, classes=10)
    groups = optim.adamw(model, PROJECT.recipe_of(PEER).optimizer).param_groups
    fixed = {id(value) for group in groups if not group["weight_decay"]
             for value in group["params"]}  # fmt: skip
    tables = [value for name, value in model.named_parameters() if "bias_table" in name]
    assert tables and all(id(table) in fixed for table in tables)
    experiment = "ade20k_upernet_smt_small"
    segmenter = network(with_model(experiment, SWIN), experiment, classes=11)
    groups = optim.adamw(segmenter, PROJECT.recipe_of(experiment).optimizer).param_groups
    fixed = {id(value) for group in groups if not group["weight_decay"]
             for value in group["params"]}  # fmt: skip
    tables = [value for name, value in segmenter.named_parameters() if "bias_table" in name]
    assert tables and all(id(table) in fixed for table in tables)


@pytest.mark.parametrize("model", [SWIN, RESNET], ids=["swin", "resnet"])
def test_a_class_map_cuts_down_the_head_that_timm_names(model):
    project = with_model(PEER, model)
    state = network(project, PEER, classes=20).state_dict()
    small = network(project, PEER, classes=3)
    cut = weights.select_head_rows(state, [5, 0, 19], head_names(small))
    small.load_state_dict(cut)
    for name in head_names(small):
        assert torch.equal(cut[name], state[name][[5, 0, 19]])


@pytest.mark.parametrize(
    ("experiment", "timm_name", "message"),
    [
        ("coco_retinanet_smt_small", "deit_tiny_patch16_224",
         "coco_retinanet_smt_small.model.timm: a head needs one map of features at each"),
        ("imagenet1k_smt_small", "resnett18",
         "imagenet1k_smt_small.model.timm: timm .* has no model 'resnett18'; did you mean"),
        ("coco_retinanet_smt_small", "maxvit_tiny_tf_224",
         "coco_retinanet_smt_small.model.timm: refuses images of 64 x 64: "),
        ("imagenet1k_smt_small", "vgg11",
         "imagenet1k_smt_small.drop_path: vgg11 of timm has no branches"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line_before_any_job(experiment, timm_name, message):
    model = TimmModel(timm=timm_name, title=timm_name, name="other")
    with pytest.raises(UserError, match=message) as error:
        require_trainable(with_model(experiment, model, drop_path=0.1), experiment)
    assert "\n" not in str(error.value)


def test_a_training_refuses_images_that_its_model_cannot_take(tmp_path, monkeypatch):
    arguments = SWIN.arguments | {"patch_size": 64}
    project = with_model(PEER, SWIN.model_copy(update={"arguments": arguments}))
    run = Run(experiment=PEER, seed=0)
    digests = dict.fromkeys(fingerprint.inputs(project, run), "0")
    monkeypatch.setattr(manifest, "digests", lambda *_: digests)
    training = RunTraining(project, Layout("smoke", tmp_path), run, Ranks(0, 1, CPU))
    with pytest.raises(UserError, match=f"{PEER}.model.timm: refuses images of 32 x 32: "):
        training.train(StopRequest(), Options(60, 1000, 60, 0))


def with_peer(project, timm_name):
    """Return the project in which the first peer has another name in timm."""
    table = project.peer_tables["peers_imagenet1k"]
    peers = table.peers | {
        "pvt_v2_b1": table.peers["pvt_v2_b1"].model_copy(update={"timm": timm_name})
    }
    tables = project.peer_tables | {
        "peers_imagenet1k": table.model_copy(update={"peers": peers})
    }  # fmt: skip
    return project.model_copy(update={"peer_tables": tables})


@pytest.mark.parametrize("require", [require_peers, check._require_peers, profile.measure])
def test_a_peer_that_timm_does_not_have_is_one_line_before_anything_is_counted(require):
    message = r"peers\.yaml:14: .*\.peers\.pvt_v2_b1\.timm: .* 'pvt_v2_bb1'; did you mean pvt_v2_b1"
    with pytest.raises(UserError, match=message):
        require(with_peer(PROJECT, "pvt_v2_bb1"))


def test_names_of_peers_are_checked_without_an_import_of_timm(monkeypatch):
    monkeypatch.setattr(sizes, "require_peers", None)
    check._require_peers(PROJECT)


def test_a_model_of_timm_is_not_computed_again():
    with pytest.raises(UserError, match="only an SMT can be computed again"):
        set_recompute(network(PROJECT, PEER, classes=10), True)
