"""The authors' released checkpoints: their naming, to and from ours, every value kept as it is.

A released file holds the state under the key `model`, beside optimizer, scheduler, epoch and
config. Only MSA is laid out in another way: released `q` and `kv`, here `query_key` and `value`.
"""

import argparse
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from smt.errors import UserError
from smt.models import weights

_STEM = {"conv": "conv.0", "batch_norm": "conv.1", "reduce": "conv.3", "norm": "norm"}
_PATCH_EMBEDDING = {"conv": "proj", "norm": "norm"}
_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "scale1": "gamma_1",
    "scale2": "gamma_2",
    "mixer.query_key": "attn.q",  # its first half
    "mixer.value": "attn.v",  # of SAM; of MSA it is the second half of attn.kv
    "mixer.depthwise": "attn.local_conv",
    "mixer.scale": "attn.s",
    "mixer.aggregate": "attn.proj1",  # of the ablation with one 1x1 convolution
    "mixer.aggregate.expand": "attn.proj0",
    "mixer.aggregate.norm": "attn.bn",
    "mixer.aggregate.reduce": "attn.proj1",
    "mixer.output": "attn.proj",
    "mlp.expand": "mlp.fc1",
    "mlp.depthwise": "mlp.dwconv.dwconv",
    "mlp.reduce": "mlp.fc2",
}
"""Parts of a block, ours and theirs. MHMC's heads, numbered from 1 there, are added below."""

_BLOCK |= {f"mixer.mhmc.heads.{head}": f"attn.local_conv_{head + 1}" for head in range(64)}

_NAME = re.compile(
    r"stages\.(?P<stage>\d)\.(?:(?P<embed>embed)\.|blocks\.(?P<block>\d+)\.)?(?P<part>.+?)"
    r"(?P<leaf>\.(?:weight|bias|running_mean|running_var|num_batches_tracked))?"
)
_DETECTION_NAME = re.compile(r"^(block\d+\.\d+\.attn\.)dw_conv\.(weight|bias)$")


class _Config:
    """Stands in for yacs.config.CfgNode, whose code is neither needed nor run: a plain mapping."""

    def __new__(cls) -> Any:
        return OrderedDict()


def read(path: Path) -> dict[str, Tensor]:
    """Return the state of a released checkpoint, in the released naming.

    No code of the file is run: tensors, plain values, argparse's namespaces and yacs' configs
    (as plain mappings) are read, anything else is refused.

    Raises:
        UserError: no such file, a damaged one, one with other objects, or one without a state.
    """
    allowed: list[Any] = [(_Config, "yacs.config.CfgNode"), argparse.Namespace]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged bytes may read as an odd pickle protocol
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read ({error.strerror or error})") from None
    except UnpicklingError:
        raise UserError(f"checkpoint {path} {_refusal(path, allowed)}") from None
    except Exception:  # on damaged bytes torch's reader fails in a dozen ways
        raise UserError(
            f"checkpoint {path} is damaged or not of torch.save: copy it again"
        ) from None
    state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not state or not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds no state dict, under the key model or by itself")
    strangers = [name for name, each in state.items() if not isinstance(each, Tensor)]
    if strangers:
        raise UserError(
            f"checkpoint {path} holds no state dict under the key model: {strangers[0]!r} "
            "is not a tensor"
        )
    return one_naming(state)


def one_naming(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a released state in which MSA's depthwise convolution is called as in classification.

    The released detection and segmentation code calls it `dw_conv`. A file with both names keeps
    them, and fails as one with extra tensors.
    """
    names = {name: _DETECTION_NAME.sub(r"\1local_conv.\2", name) for name in state}
    return {(new if new not in state else old): state[old] for old, new in names.items()}


def _refusal(path: Path, allowed: list[Any]) -> str:
    try:
        with torch.serialization.safe_globals(allowed):
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # damaged so that its list of classes cannot be read either
        unsafe = []
    if not unsafe:
        return "is damaged or not of torch.save: copy it again"
    return (
        f"holds objects of {', '.join(sorted(unsafe))}, which loading could run as code; "
        "where you trust it, save its tensors alone: torch.save({'model': checkpoint['model']}, "
        "'OUT.pth')"
    )


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our `state` in the released naming."""
    released = {}
    for name, tensor in state.items():
        pair = _other_of_pair(name)
        if pair is not None and pair in state and ".query_key." in name:
            query, key = tensor.chunk(2)
            released[released_name(name)] = query
            released[_key_value(name)] = torch.cat([key, state[pair]])
        elif pair not in state:
            released[released_name(name)] = tensor
    return released


def from_released(
    released: Mapping[str, Tensor], ours: Mapping[str, Tensor], source: Path
) -> dict[str, Tensor]:
    """Return a released state in the naming of `ours`, the state of the model it is meant for.

    `ours` may be on the meta device: only its names and shapes are used.

    Raises:
        UserError: names the tensors (as `source` does) that are missing, extra or misshapen.
    """
    weights.check(weights.shapes(to_released(ours)), weights.shapes(released), source)
    return {name: _find(name, released, ours) for name in ours}


def _find(name: str, released: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> Tensor:
    if _other_of_pair(name) not in ours:
        return released[released_name(name)]
    key, value = released[_key_value(name)].chunk(2)
    return value if ".value." in name else torch.cat([released[released_name(name)], key])


def _other_of_pair(name: str) -> str | None:
    """Return the name of `value` for one of MSA's `query_key`, and the other way round."""
    for one, other in ((".query_key.", ".value."), (".value.", ".query_key.")):
        if one in name:
            return name.replace(one, other)
    return None


def _key_value(name: str) -> str:
    """Return the released name of keys and values, for our `query_key` or `value` of MSA."""
    released = released_name(name.replace(".value.", ".query_key."))
    return released.replace(".attn.q.", ".attn.kv.")


def released_name(name: str) -> str:
    """Return the released name of a tensor of ours; of MSA's `query_key` that of the queries."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name  # the head
    stage, leaf = int(match["stage"]) + 1, match["leaf"] or ""
    if match["embed"]:
        parts = _STEM if stage == 1 else _PATCH_EMBEDDING
        return f"patch_embed{stage}.{parts[match['part']]}{leaf}"
    if match["block"]:
        return f"block{stage}.{match['block']}.{_BLOCK[match['part']]}{leaf}"
    return f"norm{stage}{leaf}"
