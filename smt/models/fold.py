"""A copy of a trained model for inference: what is constant after training is multiplied out."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smt.models.blocks import MHMC, MLP, MSA, SAA, SAM, Block, Stem
from smt.models.layers import Depthwise, InterleavedPointwise, Pointwise, ResidualDepthwise
from smt.models.smt import SMT


@torch.no_grad()
def fold(model: SMT) -> SMT:
    """Return a copy of `model` in evaluation mode that computes the same with less work.

    BatchNorm goes into the convolution before it, LayerScale into the linear layer before it,
    MHMC's heads into one convolution, the residual of the MLP's depthwise convolution and SAA's
    shuffle into their weights. Outputs differ by rounding only. The copy cannot be
    trained, and its state dict is not that of `model`.
    """
    folded = deepcopy(model).eval().requires_grad_(False)
    for module in list(folded.modules()):
        if isinstance(module, Stem):
            module.conv = _absorb_norm(module.conv, module.batch_norm)
            _replace(module, "batch_norm", nn.Identity())
        elif isinstance(module, SAM):
            _fold_modulation(module)
        elif isinstance(module, MLP):
            _replace(module, "depthwise", _with_identity(module.depthwise))
        elif isinstance(module, Block):
            _absorb_layer_scale(module)
    return folded


def _replace(parent: nn.Module, name: str, child: nn.Module) -> None:
    """Put a layer in the place of one of another type."""
    setattr(parent, name, child)


def _fold_modulation(sam: SAM) -> None:
    _replace(sam, "mhmc", _one_convolution(sam.mhmc))
    aggregate = sam.aggregate
    if isinstance(aggregate, SAA):
        expand: nn.Conv2d = aggregate.expand
        if isinstance(expand, InterleavedPointwise):
            expand = _pointwise(expand.dense_weight(), expand.bias)
        _replace(aggregate, "expand", _absorb_norm(expand, aggregate.norm))
        _replace(aggregate, "norm", nn.Identity())


def _one_convolution(mhmc: MHMC) -> Depthwise:
    """Return all heads as one convolution of the largest kernel, the smaller ones padded."""
    heads = mhmc.convolutions()
    largest = heads[-1].kernel_size[0]
    folded = Depthwise(len(heads) * mhmc.head_channels, largest)
    margins = [(largest - head.kernel_size[0]) // 2 for head in heads]
    kernels = [F.pad(head.weight, (m,) * 4) for head, m in zip(heads, margins, strict=True)]
    folded.weight = _constant(torch.cat(kernels))
    folded.bias = _constant(torch.cat([head.bias for head in heads if head.bias is not None]))
    return folded


def _absorb_norm(conv: nn.Conv2d, norm: nn.BatchNorm1d) -> nn.Conv2d:
    """Return a convolution that does `conv`, then `norm` with its running statistics."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = torch.zeros_like(factor) if conv.bias is None else conv.bias
    folded = deepcopy(conv)
    folded.weight = _constant(conv.weight * factor.view(-1, 1, 1, 1))
    folded.bias = _constant((bias - norm.running_mean) * factor + norm.bias)
    return folded


def _absorb_layer_scale(block: Block) -> None:
    mixer = block.mixer
    assert isinstance(mixer, SAM | MSA)
    for scale, linear in ((block.scale1, mixer.output), (block.scale2, block.mlp.reduce)):
        if scale is not None:
            linear.weight.mul_(scale[:, None])
            linear.bias.mul_(scale)
    block.scale1 = block.scale2 = None


def _with_identity(layer: ResidualDepthwise) -> Depthwise:
    folded = Depthwise(layer.in_channels, layer.kernel_size[0])
    folded.weight, folded.bias = _constant(layer.kernel_with_identity()), layer.bias
    return folded


def _pointwise(weight: Tensor, bias: Tensor | None) -> Pointwise:
    folded = Pointwise(weight.shape[1], weight.shape[0])
    folded.weight = _constant(weight[:, :, None, None])
    folded.bias = None if bias is None else _constant(bias)
    return folded


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
