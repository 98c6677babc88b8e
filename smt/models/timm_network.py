"""Networks of timm: classifiers, and backbones where they have maps of features at four strides."""

import inspect
import json
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import timm
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from smt.config.models import TimmModel
from smt.errors import first_line, listed, suggest
from smt.models.pyramid import Trunk
from smt.models.smt import STRIDES

_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")
_LONGEST = 200
"""Characters of what timm says that are told: it may repeat a wrong value many times."""


class Refusal(ValueError):
    """A model, an argument or an image that timm refuses; `key` is that of the experiment."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def classifier(
    spec: TimmModel, *, num_classes: int, resolution: int, drop_path_rate: float
) -> nn.Module:
    """Return a classifier of images (B, 3, resolution, resolution), logits (B, num_classes).

    It is in float32, its weights initialised by timm from torch's global generator.

    Raises:
        Refusal: timm has no such model, or refuses an argument.
    """
    network: nn.Module
    network, _ = _create(
        spec, drop_path_rate, num_classes=num_classes, optional={"img_size": resolution}
    )
    return network


def require_model(name: str) -> None:
    """Refuse the name of a model that timm does not have.

    Raises:
        Refusal: names the nearest.
    """
    if not timm.is_model(name):
        close = suggest(name, timm.list_models())
        raise Refusal("model.timm", f"timm {timm.__version__} has no model {name!r}; {close}")


def has_drop_path(spec: TimmModel) -> bool:
    """Return whether the model takes a drop-path rate.

    Raises:
        Refusal: as `classifier`.
    """
    with torch.device("meta"):
        _, taken = _create(spec, 0.0, num_classes=1, optional={})
    return "drop_path_rate" in taken


def refuse_image(network: nn.Module, images: Tensor) -> None:
    """Take images through a network on the meta device, where nothing is computed, and back.

    Raises:
        Refusal: the network cannot be trained on images of this size.
    """
    with refusing(images, "change the recipe's resolution, or the model's arguments"):
        outputs = network(images)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    torch.stack([output.sum() for output in outputs]).sum().backward()
    unused = [name for name, value in network.named_parameters() if value.grad is None]
    if unused:
        raise Refusal("model.timm", f"has weights that would not be trained: {listed(unused, 3)}")


@contextmanager
def refusing(images: Tensor, remedy: str) -> Iterator[None]:
    """Turn what fails of images in a network of timm into a refusal of their size."""
    try:
        yield
    except Exception as error:
        height, width = images.shape[-2:]
        raise Refusal(
            "model.timm", f"refuses images of {height} x {width}: {_reason(error)}; {remedy}"
        ) from None


class TimmPyramid(Trunk):
    """The trunk of a model of timm, without its closing norm and classifier.

    Tensors are named as in the classifier, after `network.`. `resolution` is that of the classifier
    which it starts from, if it starts from one: windows and embedded positions have its shape. In
    the mode `dropout` drop path drops elements in place of branches.
    """

    def __init__(
        self,
        spec: TimmModel,
        drop_path_rate: float,
        mode: Literal["stochastic", "dropout"] = "stochastic",
        resolution: int | None = None,
    ) -> None:
        """Raise `Refusal` where there is no such model, or none with maps at the four strides."""
        super().__init__()
        self.network: Any
        optional = {"img_size": resolution, "dynamic_img_size": True}
        network, _ = _create(
            spec, drop_path_rate, num_classes=1,
            optional={key: value for key, value in optional.items() if value is not None},
        )  # fmt: skip
        indices, self.widths = _levels(network, spec)
        whole = set(network.state_dict())
        self.indices = network.prune_intermediate_layers(indices, prune_norm=True)
        self.network = network
        self.not_of_trunk = whole - set(network.state_dict())
        """Tensors of the classifier that the trunk does without."""
        if mode == "dropout":
            _drop_elements(network)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return images (B, C_i, H_i, W_i) at strides 4, 8, 16, 32 of (B, 3, H, W)."""
        levels: list[Tensor] = self.network.forward_intermediates(
            images, indices=self.indices, intermediates_only=True
        )
        return levels

    def names_of(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a classifier's state but for its closing norm and head."""
        return {
            f"network.{name}": value
            for name, value in state.items()
            if name not in self.not_of_trunk
        }

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that timm's own recipes do not decay."""
        names: set[str] = getattr(self.network, "no_weight_decay", set)()
        return {f"network.{name}" for name in names}


def _create(
    spec: TimmModel, drop_path_rate: float, *, num_classes: int, optional: dict[str, Any]
) -> tuple[Any, set[str]]:
    """Return the network and which of `optional`, and of drop_path_rate, it takes.

    The rate is always given: some models of timm have another default than 0.
    """
    require_model(spec.timm)
    given = optional | {"drop_path_rate": drop_path_rate}
    arguments = {key: _tuples(value) for key, value in spec.arguments.items()}
    while True:
        try:
            network = _made(spec.timm, num_classes=num_classes, **{**given, **arguments})
            break
        except Exception as error:  # timm checks few arguments: its code fails anyhow on others
            refused = _UNEXPECTED.search(str(error))
            if refused is None or refused[1] in arguments or refused[1] not in given:
                raise _refused_arguments(spec, error) from None
            del given[refused[1]]
    if drop_path_rate and "drop_path_rate" not in given:
        raise Refusal(
            "drop_path", f"{spec.timm} of timm has no branches that could be dropped; valid: 0"
        )
    return network, set(given)


def _refused_arguments(spec: TimmModel, error: Exception) -> Refusal:
    """Return why a model cannot be made, with the nearest arguments where one is unknown."""
    unknown = _UNEXPECTED.search(str(error))
    if unknown is None:
        wrong = [key for key in spec.arguments if _is_made_without(spec, key)]
        remedy = "give other ones, or leave them out for those of timm"
        if len(wrong) != 1:
            return Refusal(
                "model.arguments" if spec.arguments else "model.timm",
                f"{spec.text} cannot be made: {_reason(error)}; {remedy}",
            )
        return Refusal(
            f"model.arguments.{wrong[0]}",
            f"{spec.timm} cannot be made with {json.dumps(spec.arguments[wrong[0]])}: "
            f"{_reason(error)}; give another value, or leave it out for that of timm",
        )
    with torch.device("meta"):
        network = timm.create_model(spec.timm, pretrained=False)
    valid = [name for name in inspect.signature(type(network)).parameters if name != "kwargs"]
    return Refusal(
        f"model.arguments.{unknown[1]}",
        f"{spec.timm} takes no such argument; {suggest(unknown[1], valid)}",
    )


def _is_made_without(spec: TimmModel, argument: str) -> bool:
    """Return whether timm makes the model once one argument is left out."""
    others = {key: _tuples(value) for key, value in spec.arguments.items() if key != argument}
    try:
        with torch.device("meta"):
            _made(spec.timm, **others)
    except Exception:
        return False
    return True


def _made(name: str, **arguments: Any) -> Any:
    """Return a network of timm without weights from a file."""
    with warnings.catch_warnings():
        # Whatever becomes of a width of 0 is said once it has failed.
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        return timm.create_model(name, pretrained=False, **arguments)


def _reason(error: Exception) -> str:
    return textwrap.shorten(first_line(error), _LONGEST, placeholder=" ...")


def _tuples(value: Any) -> Any:
    """Return a value of YAML with tuples in place of lists, as timm's code expects."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _levels(network: nn.Module, spec: TimmModel) -> tuple[list[int], tuple[int, int, int, int]]:
    """Return the indices and channels of the maps at the four strides."""
    info = list(getattr(network, "feature_info", None) or [])
    reductions = [level["reduction"] for level in info]
    indices = [index for index, stride in enumerate(reductions) if stride in STRIDES]
    has_maps = hasattr(network, "forward_intermediates") and info
    if not has_maps or tuple(reductions[index] for index in indices) != STRIDES:
        strides = ", ".join(map(str, dict.fromkeys(reductions)))
        found = f"maps at {strides}" if has_maps else "none"
        raise Refusal(
            "model.timm",
            f"a head needs one map of features at each of the strides 4, 8, 16 and 32; {spec.timm} "
            f"has {found}; valid: a model of stages, such as resnet50 or convnext_tiny",
        )
    first, second, third, last = (int(info[index]["num_chs"]) for index in indices)
    return indices, (first, second, third, last)


def _drop_elements(network: nn.Module) -> None:
    """Put dropout in the place of drop path, as the released detectors of SMT have it."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath):
                setattr(module, name, nn.Dropout(child.drop_prob))


def head_names(network: nn.Module) -> tuple[str, ...]:
    """Return the tensors of a classifier's head, which have a row for each class."""
    layers = network.pretrained_cfg["classifier"]  # type: ignore[index]
    return tuple(
        f"{layer}.{kind}"
        for layer in ([layers] if isinstance(layers, str) else layers)
        for kind in ("weight", "bias")
    )
