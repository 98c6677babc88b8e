"""Parameters and multiply-accumulates (MACs) of a model, counted without computing anything."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smt.models.blocks import MHMC, MSA
from smt.models.smt import SMT
from smt.spec import Model


@dataclass(frozen=True)
class Counts:
    """What a forward pass of one image does."""

    conv_macs: int
    conv_outputs: int
    """Outputs of convolutions that have a bias: one addition each."""
    linear_macs: int
    norm_elements: int
    """Elements of LayerNorm and BatchNorm."""
    relu_elements: int
    attention_macs: int
    """Of the products QK and AV."""

    @property
    def conv_linear(self) -> int:
        """MACs of convolutions and linear layers."""
        return self.conv_macs + self.linear_macs

    @property
    def attention(self) -> int:
        """The same with the attention products: all that is multiplied and added."""
        return self.conv_linear + self.attention_macs

    @property
    def reported(self) -> int:
        """As published tables count.

        Convolutions with their bias additions, linear layers, 2 per element of a norm, 1 per
        element of a ReLU, nothing for attention.
        """
        return self.conv_linear + self.conv_outputs + 2 * self.norm_elements + self.relu_elements

    @property
    def thop(self) -> int:
        """As the tool thop counts.

        Convolutions and linear layers without biases, 4 per element of a norm (normalise and
        scale), nothing for attention.
        """
        return self.conv_linear + 4 * self.norm_elements


def parameters(model: Model, *, num_classes: int = 1000) -> int:
    """Return the number of parameters of `model`."""
    return sum(each.numel() for each in _on_meta(model, num_classes).parameters())


def count(model: Model, resolution: int, *, num_classes: int = 1000) -> Counts:
    """Return what one image of `resolution` x `resolution` pixels costs `model`."""
    network = _on_meta(model, num_classes)
    with _counting(network) as counter, torch.inference_mode():
        network(torch.empty(1, 3, resolution, resolution, device="meta"))
    return Counts(**{name: counter[name] for name in Counts.__dataclass_fields__})


def _on_meta(model: Model, num_classes: int) -> SMT:
    with torch.device("meta"):
        return SMT(model, num_classes=num_classes).eval()


@contextmanager
def _counting(network: nn.Module) -> Iterator[Counter[str]]:
    """Count in forward hooks. A layer is counted for what it is, not for how it is computed."""
    counter: Counter[str] = Counter()

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        counter.update(_cost(module, inputs[0], output))

    handles = [module.register_forward_hook(hook) for module in network.modules()]
    try:
        yield counter
    finally:
        for handle in handles:
            handle.remove()


def _cost(module: nn.Module, x: Tensor, output: Tensor) -> dict[str, int]:
    """Return what `module` adds to the count by itself, without the modules inside it."""
    if isinstance(module, MHMC):
        per_pixel = sum(head.weight.numel() for head in module.convolutions())
        return {"conv_macs": output[..., 0].numel() * per_pixel, "conv_outputs": output.numel()}
    if isinstance(module, nn.Conv2d):
        macs = output.numel() * module.weight[0].numel()
        biased = output.numel() if module.bias is not None else 0
        return {"conv_macs": macs, "conv_outputs": biased}
    if isinstance(module, nn.Linear):
        return {"linear_macs": x.numel() * module.out_features}
    if isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
        return {"norm_elements": output.numel()}
    if isinstance(module, MSA):
        tokens = x.shape[1] * x.shape[2]
        return {"attention_macs": 2 * tokens * x.numel()}
    if isinstance(module, nn.ReLU):
        return {"relu_elements": output.numel()}
    return {}
