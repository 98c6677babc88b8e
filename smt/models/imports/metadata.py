"""What a checkpoint of others records of its training beside the weights, as JSON values."""

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeGuard

from torch import Tensor

_DEPTH = 8
"""Levels of nesting that are kept: a file could hold a mapping that holds itself."""

_LONGEST = 10_000
"""Characters of a text, or items of a list, that are kept; a longer one is left out."""

_CONFIGS = ("config", "args", "cfg", "hyper_parameters", "meta")
"""Keys under which a training's configuration is saved: the release's own is the first."""

_OMITTED = object()


@dataclass(frozen=True)
class TrainingMetadata:
    """What a file records beside its weights; a part that it lacks is empty."""

    recorded: Mapping[str, Any] = field(default_factory=dict)
    """Single values that lie beside the weights, such as epoch and max_accuracy."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The configuration of the training."""
    lr_scheduler: Mapping[str, Any] = field(default_factory=dict)
    """Single values of the learning-rate schedule."""
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """`lr`: the last learning rate, of each group where they differ. `steps`: those that AdamW has
    counted."""

    @classmethod
    def of(cls, tree: Any) -> "TrainingMetadata":
        """Return what a file holds that `torch_file.read` has read."""
        if not isinstance(tree, Mapping):
            return cls()
        configs = (_plain(tree[key]) for key in _CONFIGS if _is_config(tree.get(key)))
        return cls(
            recorded=_singles(tree),
            config=next(configs, {}),
            lr_scheduler=_singles(tree.get("lr_scheduler")),
            optimizer=_of_optimizer(tree.get("optimizer")),
        )

    @classmethod
    def from_json(cls, stored: Any) -> "TrainingMetadata":
        """Return what `to_json` returned."""
        stored = stored if isinstance(stored, Mapping) else {}
        parts = {item.name: stored.get(item.name) for item in fields(cls)}
        return cls(**{name: part for name, part in parts.items() if isinstance(part, Mapping)})

    def to_json(self) -> dict[str, Any]:
        """Return all of it as values that JSON has, without the parts that are empty."""
        return {name: part for name, part in vars(self).items() if part}

    @property
    def epochs_done(self) -> int | None:
        """Epochs of the training that are done; the recorded epoch counts them from 0."""
        epoch = self.recorded.get("epoch")
        return epoch + 1 if _is_count(epoch) or (epoch == 0 and epoch is not False) else None

    @property
    def epochs(self) -> int | None:
        """Epochs of the whole training, by the configuration."""
        return self.configured("TRAIN", "EPOCHS") or self.configured("epochs")

    @property
    def device_batch(self) -> int | None:
        """Images of a process in one forward pass."""
        return self.configured("DATA", "BATCH_SIZE") or self.configured("batch_size")

    @property
    def accumulation_steps(self) -> int | None:
        """Forward passes of an optimizer step."""
        return self.configured("TRAIN", "ACCUMULATION_STEPS")

    @property
    def schedule_steps(self) -> int | None:
        """Optimizer steps of the whole training, as timm's cosine schedule keeps them."""
        schedule = self.lr_scheduler
        steps, warmup = schedule.get("t_initial"), schedule.get("warmup_t")
        if not _is_count(steps) or schedule.get("t_in_epochs") is not False:
            return None
        if schedule.get("warmup_prefix") is True and _is_count(warmup):
            return steps + warmup
        return steps

    @property
    def schedule_passes(self) -> int | None:
        """Forward passes of an epoch, by schedule and configuration."""
        steps, epochs = self.schedule_steps, self.epochs
        if steps is None or epochs is None or steps % epochs:
            return None
        return steps // epochs * (self.accumulation_steps or 1)

    @property
    def optimizer_steps(self) -> int | None:
        """Steps that the optimizer has made."""
        steps = self.optimizer.get("steps")
        return steps if _is_count(steps) else None

    def setting(self, *keys: str) -> Any:
        """Return what the configuration has below these keys, or None."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def configured(self, *keys: str) -> int | None:
        """Return the whole number of 1 or more that the configuration has, or None."""
        value = self.setting(*keys)
        return value if _is_count(value) else None

    def text(self, *keys: str) -> str | None:
        """Return the text that the configuration has below these keys, or None."""
        value = self.setting(*keys)
        return value if isinstance(value, str) else None


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the single values of nested mappings, each with its keys joined by dots."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from flat(below, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_config(value: Any) -> bool:
    return isinstance(value, Mapping | argparse.Namespace)


def _is_single(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_meta
    return isinstance(value, bool | int | float | str) and _plain(value) is not _OMITTED


def _singles(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {}
    return {str(key): _plain(item) for key, item in value.items() if _is_single(item)}


def _of_optimizer(optimizer: Any) -> dict[str, Any]:
    if not isinstance(optimizer, Mapping):
        return {}
    groups, state = optimizer.get("param_groups"), optimizer.get("state")
    rates = [
        _plain(item["lr"])
        for item in (groups if isinstance(groups, list) else [])
        if isinstance(item, Mapping) and _is_single(item.get("lr"))
    ]
    steps = [
        int(_plain(item["step"]))
        for item in (state.values() if isinstance(state, Mapping) else [])
        if isinstance(item, Mapping) and _is_single(item.get("step"))
        and isinstance(_plain(item["step"]), int | float)
    ]  # fmt: skip
    values: dict[str, Any] = {}
    if rates:
        values["lr"] = rates[0] if len(set(rates)) == 1 else sorted(set(rates), key=str)
    if steps:
        values["steps"] = max(steps)
    return values


def _plain(value: Any, depth: int = _DEPTH) -> Any:
    """Return `value` as JSON has it; what it has not is `_OMITTED`."""
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_meta:
        value = value.item()
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if value is None or isinstance(value, bool | int):
        return value if abs(value or 0) < 2**63 else _OMITTED
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        # Half of a surrogate pair can be written nowhere.
        return value.encode(errors="replace").decode() if len(value) <= _LONGEST else _OMITTED
    if depth == 0 or not isinstance(value, Mapping | list | tuple) or len(value) > _LONGEST:
        return _OMITTED
    if isinstance(value, Mapping):
        pairs = ((_plain(str(key)), _plain(item, depth - 1)) for key, item in value.items())
        return {key: item for key, item in pairs if item is not _OMITTED}
    return [item for item in (_plain(item, depth - 1) for item in value) if item is not _OMITTED]
