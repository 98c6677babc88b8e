"""The models of `params/models.yaml`: built from a spec, or by name through timm.

Importing this module registers every model of the bundled params, at paper scale, so that
`timm.create_model("smt_tiny")` works. timm's `pretrained_cfg_overlay={"file": path}` with
`pretrained=True` takes our weights as well as released checkpoints.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from smt.config.load import load_project
from smt.config.models import Model
from smt.models import released, weights
from smt.models.smt import SMT
from smt.runs.paths import bundled_params

__all__: list[str] = []  # timm adds the registered names


def build(model: Model, *, num_classes: int, drop_path_rate: float = 0.0, in_chans: int = 3) -> SMT:
    """Return `model` in float32 on the CPU, its weights initialised from torch's global generator.

    It takes images (B, in_chans, H, W), each side 32 pixels or more, and returns logits
    (B, num_classes).
    """
    return SMT(model, num_classes=num_classes, in_chans=in_chans, drop_path_rate=drop_path_rate)


def skeleton(model: Model, *, num_classes: int) -> SMT:
    """Return `model` without memory for its weights: names and shapes only."""
    with torch.device("meta"):
        return SMT(model, num_classes=num_classes)


@cache
def registered_models() -> Mapping[str, Model]:
    """Return the models that timm knows by name: those of the bundled params, at paper scale."""
    return load_project(bundled_params(), "paper").smt_models


def _pretrained_cfg(name: str) -> dict[str, Any]:
    """Return timm's description of inputs and ends: the evaluation of section 2 of the paper."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": False,
        "min_input_size": (3, 32, 32),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.embed.conv",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs({name: _pretrained_cfg(name) for name in registered_models()})


def _checkpoint_filter(state: dict[str, Tensor], network: SMT) -> dict[str, Tensor]:
    """Return `state` in our naming, where it has the released one."""
    if not any(name.startswith("patch_embed1.") for name in state):
        return state
    ours = skeleton(network.spec, num_classes=weights.classes(state)).state_dict()
    return released.from_released(
        released.one_naming(state), ours, Path("of timm's pretrained_cfg")
    )


def _entrypoint(name: str, model: Model) -> Callable[..., Any]:
    def create(pretrained: bool = False, **options: Any) -> Any:
        out_indices = options.pop("out_indices", (0, 1, 2, 3))
        own = options.pop("model", model)  # a release of another scale brings its own
        return build_model_with_cfg(
            SMT,
            name,
            pretrained,
            model=Model.model_validate(own),
            pretrained_filter_fn=_checkpoint_filter,
            feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
            **options,
        )

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f"{model.title}, as `params/models.yaml` has it at paper scale."
    return create


for _name, _model in registered_models().items():
    globals()[_name] = register_model(_entrypoint(_name, _model))
