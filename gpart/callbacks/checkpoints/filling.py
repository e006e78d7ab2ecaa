"""What is done to a checkpoint when it was read: checked against the live module, and completed from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from lightning.pytorch import LightningModule
from torch import Tensor

from gpart.callbacks.checkpoints.contents import AdapterContents
from gpart.callbacks.checkpoints.live import entries, named_by, overrides, plain_state
from gpart.callbacks.checkpoints.states import with_states
from gpart.errors import GPartError
from gpart.injection.names import get_submodule, plain_name
from gpart.serialization.checkpoint_file import (
    CHECKPOINT_KEY,
    SEVERAL,
    below,
    check_digest,
    entries_in,
    within,
)

HINT = "This checkpoint holds an adapter: read it with gpart.callbacks.load_from_checkpoint(cls, path)"
"""A key in the saved state_dict, so that ``LightningModule.load_from_checkpoint``, which no plugin can reach, shows it
among its unexpected keys."""

_READING = ("on_load_checkpoint", "load_state_dict", "state_dict")
"""The methods by which a module edits or chooses itself what is loaded."""


class Contents(Protocol):
    """A module of which only a part is trained, as the method's callback has made it."""

    copies: tuple[str, ...]
    """Paths of copies of the module in the LightningModule, whose frozen parameters are left out as well."""

    whole: bool
    """Whether a checkpoint holds the frozen parameters too, merged ones in their place."""

    @property
    def attached(self) -> bool:
        """Whether the method is on the module still; a plain module is written as a plain one."""

    def merged(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The frozen parameters as a plain reader needs them, or None where a checkpoint leaves them out.

        Args:
            trained: what the checkpoint holds of the rest, by relative names.
        """

    def placed(self, key: str) -> str:
        """Where a relative key of a file stands in the live module; the same, but for what other versions had elsewhere."""

    def own(self) -> list[Tensor]:
        """The parameters that the plain module has not."""

    def manifest(self) -> dict[str, Any]:
        """What the trained part belongs to, as plain values."""

    def frozen_keys(self) -> set[str]:
        """The state_dict keys of the frozen parameters, relative to the adapted module."""

    def check(self, manifest: Any, state: dict[str, Tensor], source: str, whole: bool = True) -> None:
        """Raises GPartError if manifest and state (relative keys) do not fit the live module.

        Where ``whole`` is false, the module itself sees to what it trains beside the method's own numbers.
        """


Parts = Mapping[str, Contents]
"""By the path of each partly trained module in the LightningModule, what of it is trained. None is inside another."""


def adapters_in(parts: Parts) -> list[tuple[str, AdapterContents]]:
    """Every adapter of these modules, active or not, with the path of its module."""
    adapted = [(path, contents) for path, contents in parts.items() if isinstance(contents, AdapterContents)]
    return [(path, one) for path, contents in adapted for one in contents.each()]


def filled(
    checkpoint: dict[str, Any],
    source: str,
    module: LightningModule,
    parts: Parts,
    strict: bool | None = None,
) -> dict[str, Any]:
    """A loaded checkpoint, checked against the live module and completed with its frozen parameters.

    Args:
        checkpoint: as it was read.
        source: the file, for messages.
        module: the LightningModule.
        parts: the partly trained submodules, at least one.
        strict: whether every key has to be there; default as the module's ``strict_loading`` says. A module that edits
            what it loads in a hook, or loads it by a method of its own, is checked by its own strictness afterwards.

    Raises:
        GPartError: if it was written by another method, for another submodule, or does not fit; with both values.
    """
    entry, several = _entry(checkpoint, source, module, parts), None
    if (every := adapters_in(parts)) and (SEVERAL in entry or len(every) > 1):
        several = _paired(entry, every, source)
    named, state = named_by(module), _state(checkpoint, source)
    digested = state
    live_keys = {plain_name(key): key for key in named}
    frozen = entries(named, frozen_tensors(module, parts))

    def live(key: str) -> str:
        """The live key of what a file has under this one."""
        path = next((path for path in parts if key.startswith(below(path))), None)
        placed = key if path is None else below(path) + parts[path].placed(key[len(below(path)) :])
        return live_keys.get(placed, placed)

    if isinstance(tensors := entry.get("tensors"), Mapping):  # its state is a plain module's, with merged weights
        state = {key: value for key, value in state.items() if live_keys.get(key, key) not in frozen}
        state |= {f"{below(entry['module'])}{name}": value for name, value in tensors.items()}
        digested = dict(tensors)
    state = {live(key): value for key, value in state.items()}
    names = {key: named[key][0] if key in named else key for key in state}
    plain = {name: state[key] for key, name in names.items()}
    strict = module.strict_loading if strict is None else strict
    whole = strict and not any(overrides(module, method) for method in _READING)
    if several is None:
        for path, contents in parts.items():
            contents.check(entry.get("manifest"), within(path, plain), source, whole)
    for path, one, its in several or ():
        own = {one.placed(key): value for key, value in its["tensors"].items()}
        one.check(its.get("manifest"), within(path, plain), source, whole, own)
        check_digest(its, its["tensors"], source)
    check_digest(entry, digested, source)

    # The live module's order, as if nothing had been left out; what is unknown stays, for Lightning's strictness.
    def completed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        merged = {**frozen, **{live(key): value for key, value in found.items()}}
        ordered = {key: merged.pop(key) for key in named if key in merged}
        return {**ordered, **merged}

    return with_states({**checkpoint, "state_dict": state}, completed)


def _entry(checkpoint: Mapping[str, Any], source: str, module: LightningModule, parts: Parts) -> Mapping[str, Any]:
    """The adapter's entry in a checkpoint.

    Raises:
        GPartError: if there is none, with what to do, or it is for other submodules.
    """
    entry = checkpoint.get(CHECKPOINT_KEY)
    if not isinstance(entry, Mapping):
        kind = type(module).__name__
        state = checkpoint.get("state_dict")
        keys = state if isinstance(state, Mapping) else {}
        if theta := [key for key in keys if f".{key}".endswith(".theta") and ".gpart." in f".{key}"]:
            raise GPartError(
                f"{source} holds no adapter that can be checked: it has {theta[0]}, but was written by a Trainer without the"
                " callback, and not what that belongs to. Read it by such a Trainer into a module with the adapter"
                " attached; give the Trainer that writes the callback, which takes the attached adapter over; or"
                " merge_and_unload() before it goes on"
            )
        raise GPartError(
            f"{source} holds no adapter: it was written without GPartCheckpointIO; its keys are"
            f" {sorted(map(str, checkpoint))}. To train an adapter on the weights in it, read them before:"
            f" {kind}.load_from_checkpoint(path), then fit without ckpt_path; to go on as before, leave the callback out"
        )
    found = {one.get("module") for one in (entries_in(checkpoint, source) if SEVERAL in entry else [entry])}
    if found != set(parts):
        theirs, here = (", ".join(map(repr, sorted(paths, key=str))) for paths in (found, parts))
        raise GPartError(f"{source} adapts submodule {theirs}, here it is {here}")
    return entry


def _paired(
    entry: Mapping[str, Any], adapters: list[tuple[str, AdapterContents]], source: str
) -> list[tuple[str, AdapterContents, dict[str, Any]]]:
    """Each adapter with the path of its module and its entry in the file.

    Raises:
        GPartError: if they are not the same.
    """
    entries = entry.get(SEVERAL, [entry])
    found = {(one.get("module"), _name_in(one)): one for one in entries}
    live = [(path, one.adapter.name) for path, one in adapters]
    if set(found) != set(live) or not all(isinstance(one.get("tensors"), Mapping) for one in entries):
        raise GPartError(
            f"{source} holds the adapters {[name for _, name in found]}, and the module carries {[name for _, name in live]}:"
            " attach the same ones before it is loaded; gpart.load_adapter takes one of them out of it, by name"
        )
    return [(path, one, found[path, one.adapter.name]) for path, one in adapters]


def _name_in(entry: Mapping[str, Any]) -> Any:
    manifest = entry.get("manifest")
    return manifest.get("name") if isinstance(manifest, Mapping) else None


def frozen_tensors(module: LightningModule, parts: Parts) -> list[Tensor]:
    """The frozen parameters of the adapted modules and of their copies, themselves.

    Their entries are to be looked for in the whole module's state (:func:`entries`): a parameter has further keys where
    something outside the adapted module holds it too, and none where the module leaves it out of its state_dict.
    """
    tensors: list[Tensor] = []
    for path, contents in parts.items():
        for network in (path, *contents.copies):
            inside = plain_state(get_submodule(module, network))
            tensors += (inside[key] for key in contents.frozen_keys() if key in inside)
    return tensors


def _state(checkpoint: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping):
        raise GPartError(f"{source} holds no state_dict; its keys are {sorted(map(str, checkpoint))}")
    if odd := [key for key in state if not isinstance(key, str)]:
        raise GPartError(f"{source}: its state_dict has the keys {odd[:3]}, which are no names")
    return {key: value for key, value in state.items() if key != HINT}
