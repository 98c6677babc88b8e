"""Parameters and multiply-accumulates (MACs) of a model, counted without computing anything."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from smt.config.models import Model, TimmModel
from smt.models import timm_network
from smt.models.blocks import MHMC
from smt.models.smt import SMT


@dataclass(frozen=True)
class Counts:
    """What a forward pass of one image does."""

    conv_macs: int
    conv_outputs: int
    """Outputs of convolutions that have a bias: one addition each."""
    linear_macs: int
    norm_elements: int
    """Elements of LayerNorm, BatchNorm and GroupNorm."""
    relu_elements: int
    """Of ReLU layers; as published tables count, a ReLU that is a function has none."""
    attention_macs: int
    """Of the products QK and AV, and of all others outside of the layers above: projections inside
    torch's multi-head attention, dynamic convolutions."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            **{
                field.name: getattr(self, field.name) + getattr(other, field.name)
                for field in _FIELDS
            }
        )

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


Calls = Mapping[str, Sequence[tuple[nn.Module, tuple[Any, ...]]]]
"""Modules with their inputs, by the part of a network that they are."""

_FIELDS = fields(Counts)


def parameters(model: Model | TimmModel, *, num_classes: int = 1000, resolution: int = 224) -> int:
    """Return the number of parameters of `model`, made for images of that resolution."""
    network = _on_meta(model, num_classes, resolution)
    return sum(parameter.numel() for parameter in network.parameters())


def count(model: Model | TimmModel, resolution: int, *, num_classes: int = 1000) -> Counts:
    """Return what one image of `resolution` x `resolution` pixels costs `model`."""
    images = torch.empty(1, 3, resolution, resolution, device="meta")
    return count_forward(_on_meta(model, num_classes, resolution), images)


def count_timm(name: str, resolution: int) -> tuple[Counts, int]:
    """Return what one image costs a classifier of timm of 1,000 classes, and its parameters.

    Raises:
        Refusal: timm has no such model, or it takes no images of this size.
    """
    network = _on_meta(TimmModel(timm=name, title=name, name=name), 1000, resolution)
    images = torch.empty(1, 3, resolution, resolution, device="meta")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    with timm_network.refusing(images, "name a model that takes them, or none"):
        return count_forward(network, images), parameters


def _on_meta(model: Model | TimmModel, num_classes: int, resolution: int) -> nn.Module:
    with torch.device("meta"):
        if isinstance(model, Model):
            return SMT(model, num_classes=num_classes).eval()
        return timm_network.classifier(
            model, num_classes=num_classes, resolution=resolution, drop_path_rate=0.0
        ).eval()


def count_forward(
    network: nn.Module, *inputs: Any, forward: Callable[..., Any] | None = None
) -> Counts:
    """Return what `network` does with `inputs`, or its modules where a `forward` runs some of them.

    All is on the meta device, where nothing is computed. Where modules are given views of
    parameters, those must not require a gradient: torch's counter of operations cannot follow them.

    Raises:
        ValueError: a parameter is on another device, where not all operations are counted.
    """
    if not all(parameter.is_meta for parameter in network.parameters()):
        raise ValueError("a network is counted on the meta device")
    with _counting(network) as counter, torch.no_grad():
        (forward or network)(*inputs)
    return Counts(**{field.name: counter[field.name] for field in _FIELDS})


@contextmanager
def _counting(network: nn.Module) -> Iterator[Counter[str]]:
    """Count in forward hooks. A layer is counted for what it is, not for how it is computed.

    What else is multiplied while a module of `network` runs, torch's counter of operations sees.
    """
    counter: Counter[str] = Counter()
    operations = FlopCounterMode(display=False)
    depth = others = 0  # others: operations that no layer accounts for

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal depth, others
        depth += 1
        others += operations.get_total_flops() * (isinstance(module, _LAYERS) - (depth == 1))

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal depth, others
        others -= operations.get_total_flops() * (isinstance(module, _LAYERS) - (depth == 1))
        depth -= 1
        if inputs:
            counter.update(_cost(module, inputs[0], output))
        if depth == 0:
            counter["attention_macs"] += others // 2  # a product and a sum each
            others = 0

    handles = [module.register_forward_pre_hook(enter) for module in network.modules()]
    handles += [module.register_forward_hook(leave) for module in network.modules()]
    try:
        with operations:
            yield counter
    finally:
        for handle in handles:
            handle.remove()


_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_LAYERS = (MHMC, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""What accounts for all that it multiplies."""


def _cost(module: nn.Module, x: Tensor, output: Tensor) -> dict[str, int]:
    """Return what `module` adds to the count by itself, without the modules inside it."""
    if isinstance(module, MHMC):
        per_pixel = sum(head.weight.numel() for head in module.convolutions())
        return {"conv_macs": output[..., 0].numel() * per_pixel, "conv_outputs": output.numel()}
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        # A cell meets the weights of one output, or if transposed of one input.
        cells = x if isinstance(module, nn.ConvTranspose2d) else output
        biased = output.numel() if module.bias is not None else 0
        return {"conv_macs": cells.numel() * module.weight[0].numel(), "conv_outputs": biased}
    if isinstance(module, nn.Linear):
        return {"linear_macs": x.numel() * module.out_features}
    if isinstance(module, _NORMS):
        return {"norm_elements": output.numel()}
    if isinstance(module, nn.ReLU):
        return {"relu_elements": output.numel()}
    return {}
