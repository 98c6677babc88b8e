"""The SMT network: four stages planned by the evolutionary hybrid stacking (EHN), a classifier."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smt.config.models import Model
from smt.errors import UserError
from smt.models.blocks import BLOCK_NORM_EPS, PatchEmbedding, Stem, block
from smt.models.layers import image
from smt.models.mixed_precision import pre_norm

STRIDES = (4, 8, 16, 32)
"""Of each stage's output, in pixels of the input."""

GlobalPool = Literal["avg", ""]


class Stage(nn.Module):
    """Embedding, blocks, closing LayerNorm."""

    def __init__(
        self, model: Model, stage: int, in_chans: int, drop_path_rates: Sequence[float]
    ) -> None:
        super().__init__()
        channels = model.widths[stage]
        self.embed = (
            PatchEmbedding(in_chans, channels)
            if stage
            else Stem(in_chans, channels, model.stem_kernel)
        )
        self.blocks = nn.ModuleList(
            block(model, stage, mixer, rate)
            for mixer, rate in zip(model.block_mixers(stage), drop_path_rates, strict=True)
        )
        self.norm = nn.LayerNorm(channels, eps=BLOCK_NORM_EPS)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H', W', C), from images (B, in_chans, H, W) in stage 1, else (B, H, W, C)."""
        x = self.embed(x)
        for block_ in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(
                    block_, x, use_reentrant=False, context_fn=partial(_checkpoint_contexts, block_)
                )
            else:
                x = block_(x)
        _, output = pre_norm(self.norm, x)
        return output


class SMT(nn.Module):
    """An SMT with a classifier, in the interface that timm's models have.

    `forward` takes images (B, in_chans, H, W), each side 32 pixels or more, in any memory format,
    and returns logits (B, num_classes), or the pooled features (B, C) with `num_classes` 0.
    Weights are initialised from torch's global generator. `drop_path_rate` is the last block's; it
    rises linearly from 0 over the blocks.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        global_pool: GlobalPool = "avg",
    ) -> None:
        super().__init__()
        self.spec = model
        rates = iter(torch.linspace(0, drop_path_rate, sum(model.depths), device="cpu").tolist())
        sources = (in_chans, *model.widths)
        self.stages = nn.ModuleList(
            Stage(model, stage, sources[stage], [next(rates) for _ in range(model.depths[stage])])
            for stage in range(4)
        )
        self.num_features = self.head_hidden_size = model.widths[-1]
        self.feature_info = [
            {"num_chs": channels, "reduction": stride, "module": f"stages.{stage}"}
            for stage, (channels, stride) in enumerate(zip(model.widths, STRIDES, strict=True))
        ]
        self.num_classes, self.global_pool = num_classes, global_pool
        self.head = _classifier(self.num_features, num_classes, global_pool)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last stage's output as an image (B, C, H / 32, W / 32)."""
        x = images
        for stage in self.stages:
            x = stage(x)
        return image(x)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits of an image of features, or with `pre_logits` the pooled (B, C)."""
        pooled = features.mean((2, 3)) if self.global_pool == "avg" else features
        return pooled if pre_logits else self.head(pooled)

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return (last output, outputs of the stages `indices`), all images (B, C, H, W).

        Each stage's output is that of its closing LayerNorm, whatever `norm` says. `indices` are
        as in timm: stage numbers, or how many of the last stages. With `intermediates_only` the
        list alone is returned.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r}: valid: 'NCHW'")
        wanted_stages, last = _feature_indices(len(self.stages), indices)
        outputs = []
        x = images
        for index, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if index in wanted_stages:
                outputs.append(image(x))
        return outputs if intermediates_only else (image(x), outputs)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages after the last of `indices`, and the head; return the indices."""
        wanted_stages, last = _feature_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return wanted_stages

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: GlobalPool | None = None) -> None:
        """Replace the classifier by a new one, or by none with `num_classes` 0.

        `global_pool` is avg, or "" for an image of features, which has no classifier.
        """
        pool = self.global_pool if global_pool is None else global_pool
        head = _classifier(self.num_features, num_classes, pool)
        self.head = head.to(next(self.parameters())).apply(_initialise)
        self.num_classes, self.global_pool = num_classes, pool

    def no_weight_decay(self) -> set[str]:
        """Return no names: what must not decay, norms and biases, has one dimension."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how timm tells layers by their names: stem, blocks (coarse: stages), closing norm.

        A stage's embedding and its closing LayerNorm are of the layer of the block after or before.
        """
        stages: Any = [
            (r"^stages\.(\d+)\.embed", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99999,)),
        ]
        return {"stem": r"^stages\.0\.embed", "blocks": r"^stages\.(\d+)" if coarse else stages}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each block's input in training, and compute the rest again for gradients."""
        set_recompute(self, enable)


def set_recompute(network: nn.Module, enable: bool) -> None:
    """Let the blocks of a network, of whatever task, be computed again in its backward passes.

    Losses, gradients and running statistics stay the same bits: random numbers are restored, and
    BatchNorms are kept from counting a batch twice.

    Raises:
        UserError: it is to, and it is not an SMT.
    """
    stages = [module for module in network.modules() if isinstance(module, Stage)]
    if enable and not stages:
        raise UserError("recomputation: only an SMT can be computed again, not a model of timm")
    for stage in stages:
        stage.grad_checkpointing = enable


def _feature_indices(stages: int, indices: int | list[int] | None) -> tuple[list[int], int]:
    """Return the numbers of the stages that `indices` mean to timm, and the last of them."""
    from timm.models._features import feature_take_indices  # who trains needs no timm for it

    wanted_stages, last = feature_take_indices(stages, indices)
    return wanted_stages, last


def _classifier(channels: int, num_classes: int, global_pool: str) -> nn.Module:
    if global_pool not in ("avg", ""):
        raise ValueError(f"global_pool {global_pool!r}: valid: 'avg', ''")
    if num_classes and not global_pool:
        raise ValueError("global_pool '' has no classifier: valid: num_classes 0, or 'avg'")
    return nn.Linear(channels, num_classes) if num_classes else nn.Identity()


def _initialise(module: nn.Module) -> None:
    """Initialise a layer as the released code does; norms start at 1 and 0 by default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0, sqrt(2 / fan_out))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _checkpoint_contexts(module: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), _frozen_statistics(module)


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are: a block computed again must not count twice.

    With momentum 0 the same operations run, which checkpointing asks for, and change nothing.
    """
    norms = [
        layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
