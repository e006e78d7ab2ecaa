"""Checkpoints that hold what is trained, and nothing else.

Invariant: a file that this plugin has written holds no frozen parameter of the adapted module; what it reads is checked
against the live model first, and then filled from it, so that Lightning's strict loading stays strict.

Three layers, outermost first: :class:`GPartCheckpointIO` filters and fills; the user's own plugin (asynchronous, remote)
does what it does; :class:`AtomicCheckpointIO` replaces files as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from torch import Tensor

from gpart.callbacks.checkpoints.hyperparameters import loadable
from gpart.callbacks.checkpoints.states import with_states
from gpart.callbacks.packages import OfBoth, both, is_a
from gpart.errors import GPartError
from gpart.injection.tensors import entries_of
from gpart.serialization.atomic import replacing
from gpart.serialization.checkpoint_file import CHECKPOINT_KEY, check_checksums, check_digest, reason, state_digest

HINT = "This checkpoint holds an adapter: read it with gpart.callbacks.load_from_checkpoint(cls, path)"
"""A key in the saved state_dict, so that ``LightningModule.load_from_checkpoint``, which no plugin can reach, shows it
among its unexpected keys."""


class Contents(Protocol):
    """A module of which only a part is trained, as the method's callback has made it."""

    def manifest(self) -> dict[str, Any]:
        """What the trained part belongs to, as plain values."""

    def frozen_keys(self) -> set[str]:
        """The state_dict keys of the frozen parameters, relative to the adapted module."""

    def check(self, manifest: Any, state: dict[str, Tensor], source: str) -> None:
        """Raises GPartError if manifest and state (relative keys) do not fit the live module."""


class GPartCheckpointIO(OfBoth, CheckpointIO):
    """The outermost checkpoint plugin: filters what is written and fills what is read.

    The method's callback puts it in where the user has not: ``Trainer(plugins=[GPartCheckpointIO()])`` says it openly,
    ``Trainer(plugins=[AsyncCheckpointIO()])`` is wrapped.

    A removal waits until every checkpoint handed in before it is written, so that there is always a whole one.

    Args:
        checkpoint_io: the plugin that does the writing; default local files, each replaced as a whole.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        self._order = _Order()
        self.checkpoint_io = _with_innermost(checkpoint_io, self._order)
        self._module: LightningModule | None = None
        self._path = ""
        self._contents: Contents | None = None
        self._copies: tuple[str, ...] = ()

    def connect(self, module: LightningModule, path: str, contents: Contents, copies: tuple[str, ...] = ()) -> None:
        """Tells the plugin which submodule of which module is partly trained; the method's callback does.

        Args:
            module: the LightningModule.
            path: of the submodule in it.
            contents: what is trained of the submodule.
            copies: paths of its copies, whose frozen parameters are the submodule's.
        """
        self._module, self._path, self._contents, self._copies = module, path, contents, copies

    def frozen_keys(self) -> set[str]:
        """The keys of the connected module's state_dict that are not written."""
        if self._contents is None or self._module is None:
            return set()
        return set(_frozen(self._module, self._path, self._contents, self._copies))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Writes a checkpoint without the frozen parameters.

        Raises:
            GPartError: if it holds a value that could not be read again, with its place.
        """
        if self._contents is not None and self._module is not None:
            frozen = self.frozen_keys()

            def kept(state: Mapping[str, Any]) -> dict[str, Any]:
                return {key: value for key, value in state.items() if key not in frozen}

            if "state_dict" not in checkpoint:  # a module's bare state, which forked processes hand to their parent
                checkpoint = kept(checkpoint)
            else:
                checkpoint = with_states(checkpoint, kept)
                state = checkpoint["state_dict"]
                checkpoint[CHECKPOINT_KEY] = {
                    "module": self._path,
                    "copies": list(self._copies),
                    "manifest": self._contents.manifest(),
                    "sha256": state_digest(state),
                    "hint": HINT,
                }
                checkpoint["state_dict"] = {**state, HINT: torch.empty(0)}
        checkpoint = loadable(checkpoint)  # what is refused was not handed in, and must not hold back removals
        self._order.handed_in()
        self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options=storage_options)

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint, never running code in it, checks it, and fills in the live frozen parameters.

        Raises:
            GPartFileError: if there is none at ``path``.
            GPartError: if it is damaged or does not fit the live model, with both values.
        """
        if Path(path).is_file():
            check_checksums(path)
        try:
            checkpoint = self.checkpoint_io.load_checkpoint(path, weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # on damaged files torch's reader raises whatever it stumbles over
            raise GPartError(f"{path} cannot be read as a checkpoint: {reason(error)}") from error
        if self._contents is None or self._module is None:
            return checkpoint
        return filled(checkpoint, str(path), self._module, self._path, self._contents, self._copies)

    def remove_checkpoint(self, path: _PATH) -> None:
        """Removes a checkpoint, once all that were handed in before are written."""
        self._order.then(lambda: self.checkpoint_io.remove_checkpoint(path))

    def teardown(self) -> None:
        """Waits for what is still being written."""
        self.checkpoint_io.teardown()
        self._order.finish()


class AtomicCheckpointIO(OfBoth, TorchCheckpointIO):
    """Local checkpoints, each replaced as a whole: written beside its place, synced, renamed.

    Lightning's own goes by the system's temporary folder and a move, which copies across file systems.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Writes the file; remote paths go Lightning's way."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            torch.save(checkpoint, file)


def filled(
    checkpoint: dict[str, Any],
    source: str,
    module: LightningModule,
    path: str,
    contents: Contents,
    copies: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A loaded checkpoint, checked against the live module and completed with its frozen parameters.

    Raises:
        GPartError: if it was written by another method, for another submodule, or does not fit; with both values.
    """
    entry = checkpoint.get(CHECKPOINT_KEY)
    if not isinstance(entry, Mapping):
        raise GPartError(
            f"{source} holds no adapter: it was written without GPartCheckpointIO; its keys are"
            f" {sorted(map(str, checkpoint))}"
        )
    if entry.get("module") != path:
        raise GPartError(f"{source} adapts submodule {entry.get('module')!r}, here it is {path!r}")
    prefix = f"{path}." if path else ""
    if not isinstance(checkpoint.get("state_dict"), Mapping):
        raise GPartError(f"{source} holds no state_dict; its keys are {sorted(map(str, checkpoint))}")
    if odd := [key for key in checkpoint["state_dict"] if not isinstance(key, str)]:
        raise GPartError(f"{source}: its state_dict has the keys {odd[:3]}, which are no names")
    state = {key: value for key, value in checkpoint["state_dict"].items() if key != HINT}
    inside = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    contents.check(entry.get("manifest"), inside, source)
    check_digest(entry, state, source)
    live, frozen = module.state_dict(), _frozen(module, path, contents, copies)

    # The live module's order, as if nothing had been left out; what is unknown stays, for Lightning's strictness.
    def completed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        merged = {**frozen, **found}
        ordered = {key: merged.pop(key) for key in live if key in merged}
        return {**ordered, **merged}

    return with_states({**checkpoint, "state_dict": state}, completed)


def _frozen(module: LightningModule, path: str, contents: Contents, copies: tuple[str, ...]) -> dict[str, Tensor]:
    """The frozen parameters by every key that they have in the whole module's state_dict.

    A parameter has further keys where something outside the adapted module holds it too; a module may also leave frozen
    weights out of its state_dict by itself, and then they are not looked for.
    """
    tensors: list[Tensor] = []
    for network in (path, *copies):
        inside = module.get_submodule(network).state_dict(keep_vars=True)
        tensors += (inside[key] for key in contents.frozen_keys() if key in inside)
    return entries_of(module.state_dict(keep_vars=True), tensors)


class _Order:
    """Counts what was handed in and what is written; runs a removal when all that came before it is written."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._handed_in = self._written = 0
        self._waiting: list[tuple[int, Any]] = []

    def __reduce__(self) -> tuple[type[_Order], tuple[()]]:
        # A copy in another process begins anew: what is being written here is no affair of its.
        return _Order, ()

    def handed_in(self) -> None:
        with self._lock:
            self._handed_in += 1

    def written(self) -> None:
        with self._lock:
            self._written += 1
        self._run()

    def then(self, action: Any) -> None:
        with self._lock:
            self._waiting.append((self._handed_in, action))
        self._run()

    def finish(self) -> None:
        """Nothing is being written any more: what failed must not delete what came before it."""
        with self._lock:
            failed = self._written < self._handed_in
            ready, self._waiting = ([] if failed else self._waiting), []
            self._handed_in = self._written = 0
        for _, action in ready:
            action()

    def _run(self) -> None:
        with self._lock:
            ready = [action for after, action in self._waiting if after <= self._written]
            self._waiting = [item for item in self._waiting if item[0] > self._written]
        for action in ready:
            action()


class _Counted(CheckpointIO):
    """The innermost plugin, telling when a checkpoint is whole."""

    def __init__(self, inner: CheckpointIO, order: _Order) -> None:
        self._inner, self._order = inner, order

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        self._inner.save_checkpoint(checkpoint, path, storage_options=storage_options)
        self._order.written()

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return self._inner.load_checkpoint(path, weights_only=weights_only)

    def remove_checkpoint(self, path: _PATH) -> None:
        self._inner.remove_checkpoint(path)

    def teardown(self) -> None:
        self._inner.teardown()


def _with_innermost(plugin: CheckpointIO | None, order: _Order) -> CheckpointIO:
    """The user's plugin with :class:`AtomicCheckpointIO` where Lightning's default would stand, and the count."""
    if is_a(plugin, _WrappingCheckpointIO):
        # Its own setter takes a base plugin once only, and refuses where one is in already.
        plugin._checkpoint_io = _with_innermost(plugin._checkpoint_io, order)
        plugin._base_checkpoint_io_configured = True
        return plugin
    if plugin is None or type(plugin) in both(TorchCheckpointIO):
        plugin = AtomicCheckpointIO()
    return _Counted(plugin, order)
