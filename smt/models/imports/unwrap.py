"""From what people save to a state under an SMT's own names: wrappers, prefixes, averages."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from smt.errors import UserError, listed

_DEPTH = 3
"""Levels of nested mappings that are searched for states."""

_NO_WEIGHTS = re.compile(r"optim|sched|scaler|^amp$|^callbacks$|^loops$", re.IGNORECASE)
"""Keys of what a training keeps beside its weights."""

_AVERAGED = re.compile(r"ema|swa|averag|teacher|shadow", re.IGNORECASE)
"""In the key of weights that are a running mean of those that were trained."""

_PREFERRED = ("model", "state_dict")
"""Which of several states is taken by itself: the release's own key, and the most usual one."""

_SMT_NAME = re.compile(r"(?:^|\.)((?:patch_embed\d+\.|block\d+\.\d+\.|stages\.\d+\.).+)$")
"""From here on a name is an SMT's own, released or ours; what stands before is a prefix."""

_COUNTERS = ("n_averaged", "steps")
"""What torch's AveragedModel and mmengine's averaged models keep beside the weights."""

_INFIXES = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts that wrappers put into names, around single layers as well."""

_WRAPPERS = {
    "module": "DataParallel or DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
}


def states(tree: Any) -> dict[str, Mapping[str, Any]]:
    """Return every mapping of names to tensors in a file, by its keys joined by dots.

    That of the file itself has the key "": it counts only where there is none below it.
    """
    return dict(_states(tree, (), _DEPTH))


def _states(
    tree: Any, keys: tuple[str, ...], depth: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(tree, Mapping) or not all(isinstance(key, str) for key in tree):
        return
    below = []
    if depth:
        for key, value in tree.items():
            if isinstance(value, Mapping) and not _NO_WEIGHTS.search(key):
                below += list(_states(value, (*keys, key), depth - 1))
    if not below and any(isinstance(value, Tensor) for value in tree.values()):
        below = [(".".join(keys), tree)]
    yield from below


def choose_state(
    by_key: Mapping[str, Any], requested: str | None, source: Path
) -> tuple[str, str | None]:
    """Return the key of the state that is taken, and what to say of it.

    Without `requested` that is the only one, or `model` as the release's own code takes it, or
    `state_dict`, or the only one that is not averaged.

    Raises:
        UserError: there is none, not this one, or several without a usual one.
    """
    if not by_key:
        raise UserError(
            f"checkpoint {source} holds no state dict, under the key model or by itself; save the "
            "tensors by: torch.save({'model': model.state_dict()}, 'OUT.pth')"
        )
    if requested is not None:
        if requested not in by_key:
            valid = listed(key or "none: its tensors lie under no key" for key in by_key)
            raise UserError(f"--state {requested!a}: not in {source}; valid: {valid}")
        return requested, None if len(
            by_key
        ) == 1 else f"it holds {listed(by_key)}: {requested} was taken"
    if len(by_key) == 1:
        (key,) = by_key
        usual = key in ("", "model")
        return key, None if usual else f"the weights were taken from its key {listed([key])}"
    plain = [key for key in by_key if not _AVERAGED.search(key)]
    (*usual_keys,) = (key for key in _PREFERRED if key in by_key)
    if not usual_keys and len(plain) != 1:
        raise UserError(
            f"checkpoint {source} holds several states ({listed(by_key)}): name the one to take by "
            "--state KEY"
        )
    key = usual_keys[0] if usual_keys else plain[0]
    others = [other for other in by_key if other != key]
    why = ", which the release's own code evaluates" if key == "model" else ""
    return key, (
        f"it holds {listed([key, *others])}: {listed([key])} was taken{why}; to take another: "
        f"--state {listed(others[:1])}"
    )


def unwrap(
    state: Mapping[str, Tensor], prefix: str | None, source: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Return a state without what wrappers put before and into its names, and what to say of it.

    A prefix is taken off by itself where every name has it. With `prefix` only the names that
    begin with it are taken.

    Raises:
        UserError: some names have a prefix and others do not, or two names would become one.
    """
    counters = [name for name in _COUNTERS if name in state and state[name].numel() == 1]
    names = [name for name in state if name not in counters]
    notes = [f"{listed(counters)} left out: a counter, no weight"] if counters else []
    if prefix is None:
        prefix = _prefix(names, source)
    else:
        prefixed = [name for name in names if name.startswith(prefix)]
        if not prefixed:
            valid = listed(sorted(_prefixes(names))) or "none"
            raise UserError(f"--prefix {prefix!a}: no name of {source} has it; valid: {valid}")
        if len(prefixed) < len(names):
            left = [name for name in names if name not in set(prefixed)]
            notes.append(
                f"{len(left)} of {len(names)} names without {prefix!a} left out: {listed(left, 3)}"
            )
        names = prefixed
    if prefix:
        notes.append(f"{prefix!a} taken off all {len(names)} names{_reason(prefix)}")
    new = {name: _inner(name.removeprefix(prefix)) for name in names}
    inner = [name for name in names if new[name] != name.removeprefix(prefix)]
    if inner:
        notes.append(f"wrappers taken out of {len(inner)} names, such as {listed(inner[:1])}")
    _refuse_collisions(new, source)
    return {new[name]: state[name] for name in names}, notes


def is_smt(state: Mapping[str, Any]) -> bool:
    """Return whether names of a state are those of an SMT, released or ours."""
    return "" in _prefixes(list(state))


def has_smt_names(names: Iterable[str]) -> bool:
    """Return whether some of these names have that of an SMT's tensor in them, after any prefix."""
    return bool(_prefixes(list(names)))


def _prefix(names: list[str], source: Path) -> str:
    """Return what stands before the names of an SMT in all of them: mostly nothing."""
    names_by_prefix = _prefixes(names)
    if not names_by_prefix or names_by_prefix.keys() == {""}:
        return ""  # names that are not an SMT's are told when they are held against a model's
    first = next(prefix for prefix in names_by_prefix if prefix)
    unprefixed = [name for name in names if not name.startswith(first)]
    if not unprefixed and len(names_by_prefix) == 1:
        return first
    if len(names_by_prefix) > 1:
        of = "; ".join(
            f"{ascii(prefix) if prefix else 'none'} ({len(names_of_prefix)}, such as "
            f"{listed(names_of_prefix[:1])})"
            for prefix, names_of_prefix in names_by_prefix.items()
        )
        why = f"names an SMT's tensors under several prefixes: {of}"
    else:
        why = (
            f"has the prefix {first!a} at {len(names) - len(unprefixed)} of {len(names)} "
            f"names; without it: {listed(unprefixed)}"
        )
    raise UserError(
        f"checkpoint {source} {why}; to take those of one prefix alone: smt convert {source} "
        f"OUT.safetensors --model NAME --prefix {listed([first])}"
    )


def _prefixes(names: list[str]) -> dict[str, list[str]]:
    """Return the names that have an SMT's own name in them, by what stands before it."""
    names_by_prefix: dict[str, list[str]] = {}
    for name in names:
        match = _SMT_NAME.search(name)
        if match is not None:
            names_by_prefix.setdefault(name[: match.start(1)], []).append(name)
    return names_by_prefix


def _reason(prefix: str) -> str:
    reasons = [_WRAPPERS[part] for part in prefix.split(".") if part in _WRAPPERS]
    return f" ({', '.join(reasons)})" if reasons else ""


def _inner(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _INFIXES)


def _refuse_collisions(new: Mapping[str, str], source: Path) -> None:
    first: dict[str, str] = {}
    for old, name in new.items():
        if name in first:
            raise UserError(
                f"checkpoint {source}: without its wrappers {listed([first[name]])} and "
                f"{listed([old])} are one name; save the state of the model within the wrappers"
            )
        first[name] = old
