"""The authors' released checkpoints: their naming, to and from ours, every value kept as it is.

A released file holds the state under the key `model`, beside optimizer, scheduler, epoch and
config. Only MSA is laid out in another way: released `q` and `kv`, here `query_key` and `value`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smt.errors import UserError, listed
from smt.models import weights
from smt.models.imports import torch_file, unwrap, values
from smt.models.imports.metadata import TrainingMetadata

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


@dataclass(frozen=True)
class Checkpoint:
    """What is taken from a file of others."""

    state: dict[str, Tensor]
    """In the released naming, or in ours where the file has that."""
    key: str
    """Of the state in the file; empty where its tensors lie under no key."""
    notes: tuple[str, ...]
    """What was chosen, and what was changed in the names, a line each."""
    facts: TrainingMetadata
    """What the file knows beside its tensors."""

    @property
    def classes(self) -> int:
        """Rows of the classifier; 0 without one."""
        return weights.classes(self.state)


def read(path: Path, state: str | None = None, prefix: str | None = None) -> Checkpoint:
    """Return a checkpoint's state under an SMT's names, and what the file knows beside it.

    No code of the file is run. Of several states it takes that of the key `state`, else the one
    that `unwrap.choose` says. Names are freed of what wrappers have put into them, and of `prefix`.

    Raises:
        UserError: no such file, a damaged one, one with other objects, without a state, with
            several, or with names that only `prefix` can decide on.
    """
    return take(torch_file.read(path), path, state, prefix)


def take(
    content: torch_file.Content, path: Path, state: str | None = None, prefix: str | None = None
) -> Checkpoint:
    """Return what `read` does, of a file that has been read.

    Raises:
        UserError: as `read`.
    """
    states_by_key = unwrap.states(content.tree)
    key, choice = unwrap.choose_state(states_by_key, state, path)
    under = f"under the key {listed([key])}" if key else "by itself"
    non_tensors = [
        name for name, value in states_by_key[key].items() if not isinstance(value, Tensor)
    ]
    if non_tensors:
        raise UserError(
            f"checkpoint {path} holds no state dict {under}: not a tensor: {listed(non_tensors)}"
        )
    own, changes = unwrap.unwrap(states_by_key[key], prefix, path)
    notes = [note for note in (choice, *changes) if note is not None]
    if content.is_safetensors != (path.suffix == ".safetensors"):
        form = "safetensors" if content.is_safetensors else "torch.save"
        notes.insert(0, f"by its content it is a file of {form}, whatever its name says")
    return Checkpoint(one_naming(own), key, tuple(notes), training_metadata(content))


def training_metadata(content: torch_file.Content) -> TrainingMetadata:
    """Return what a file knows; weights of ours that were converted know it of their source."""
    if not content.is_safetensors:
        # A state by itself has nothing beside it: its single numbers are its own counters.
        return (
            TrainingMetadata()
            if "" in unwrap.states(content.tree)
            else TrainingMetadata.of(content.tree)
        )
    return stored_metadata(weights.parsed(content.metadata))


def stored_metadata(metadata: Mapping[str, Any]) -> TrainingMetadata:
    """Return what weights of ours keep of the file that they were converted from."""
    return TrainingMetadata.from_json(metadata.get("source"))


def one_naming(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a released state in which MSA's depthwise convolution is called as in classification.

    The released detection and segmentation code calls it `dw_conv`. A file with both names keeps
    them, and fails as one with extra tensors.
    """
    names = {name: _DETECTION_NAME.sub(r"\1local_conv.\2", name) for name in state}
    return {(new if new not in state else old): state[old] for old, new in names.items()}


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

    `ours` may be on the meta device: only its names, shapes and kinds of number are used.

    Raises:
        UserError: names the tensors (as `source` does) that are missing, extra or misshapen, and
            those whose values cannot be weights.
    """
    check(released, to_released(ours), source)
    return {name: _find(name, released, ours) for name in ours}


def to_ours(
    state: Mapping[str, Tensor], ours: Mapping[str, Tensor], source: Path
) -> dict[str, Tensor]:
    """Return a state of either naming in that of `ours`, the state of the model it is meant for.

    Raises:
        UserError: as `from_released`.
    """
    if not is_ours(state):
        return from_released(state, ours, source)
    check(state, ours, source)
    return dict(state)


def check(state: Mapping[str, Tensor], model: Mapping[str, Tensor], source: Path) -> None:
    """Check that names, shapes and values of a file can be those of `model`, in its naming.

    Raises:
        UserError: names the tensors that cannot.
    """
    weights.check(weights.shapes(model), weights.shapes(state), source)
    values.check(state, model, source)


def is_ours(state: Mapping[str, Tensor]) -> bool:
    """Return whether the names of a state are this project's."""
    return any(name.startswith("stages.") for name in state)


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
