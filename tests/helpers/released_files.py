"""Checkpoints in the format in which the release's code writes them, of a small SMT."""

import sys
from collections.abc import Mapping
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

import torch

from smt.models import released, zoo
from tests.helpers.params import project_at

SCALE = "smoke"
"""Scale with a small model; `--scale` of smt convert."""

STEPS_OF_IMAGENET1K = 1251
"""Per epoch: 1,281,167 images in batches of 1,024, without the incomplete last batch."""


def state(classes=1000, steps=300 * STEPS_OF_IMAGENET1K):
    """Return the released state dict of a small SMT-T, with `steps` in its BatchNorm counters."""
    model = project_at(SCALE).models["smt_tiny"]
    torch.manual_seed(0)
    tensors = released.to_released(zoo.build(model, num_classes=classes).state_dict())
    return {
        name: torch.tensor(steps) if name.endswith("num_batches_tracked") else tensor.clone()
        for name, tensor in tensors.items()
    }


def configuration(*, epochs=300, device_batch=128, rate=2e-3, pretrained="", **others):
    """Return a configuration as the release saves it: with its scaled learning rate."""
    return {
        "DATA": {"BATCH_SIZE": device_batch, "DATASET": "imagenet", "IMG_SIZE": 224},
        "MODEL": {"TYPE": "smt", "NAME": "smt_tiny_224", "PRETRAINED": pretrained,
                  "NUM_CLASSES": 1000, "SMT": {"DEPTHS": [2, 2, 8, 1]}},
        "TRAIN": {"EPOCHS": epochs, "WARMUP_EPOCHS": 5, "BASE_LR": rate, "ACCUMULATION_STEPS": 1,
                  "OPTIMIZER": {"NAME": "adamw", "BETAS": (0.9, 0.999)}},
        "TAG": "default",
        **others,
    }  # fmt: skip


@contextmanager
def yacs():
    """Yield a class that pickle stores as yacs' CfgNode; yacs cannot be imported afterwards."""

    class CfgNode(dict):
        def __init__(self, values):
            super().__init__(
                {key: CfgNode(value) if isinstance(value, Mapping) else value
                 for key, value in values.items()}
            )  # fmt: skip
            self.__dict__["__immutable__"] = True

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    package, module = ModuleType("yacs"), ModuleType("yacs.config")
    vars(package)["config"], vars(module)["CfgNode"] = module, CfgNode
    with mock.patch.dict(sys.modules, {"yacs": package, "yacs.config": module}):
        yield CfgNode


def write(path, weights, *, epoch=299, max_accuracy=82.19, config=None, steps=375_290, **others):
    """Write a checkpoint as the release's code does after an epoch, and return `path`."""
    settings = configuration() if config is None else config
    schedule = {"t_initial": 295 * STEPS_OF_IMAGENET1K, "warmup_t": 5 * STEPS_OF_IMAGENET1K,
                "warmup_prefix": True, "t_in_epochs": False}  # fmt: skip
    moments = {"step": torch.tensor(float(steps)), "exp_avg": torch.zeros(2)}
    with yacs() as node:
        torch.save(
            {
                "model": weights,
                "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 2e-6}, {"lr": 2e-6}]},
                "lr_scheduler": schedule,
                "max_accuracy": max_accuracy,
                "scaler": {"scale": 65536.0},
                "epoch": epoch,
                "config": node(settings),
                **others,
            },
            path,
        )
    return path
