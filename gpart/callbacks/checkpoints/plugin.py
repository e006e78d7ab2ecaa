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
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from gpart.callbacks.checkpoints.filling import HINT, Contents, Parts, filled, frozen_tensors
from gpart.callbacks.checkpoints.hyperparameters import NotPlainError, as_given, with_objects
from gpart.callbacks.checkpoints.live import entries, named_by
from gpart.callbacks.checkpoints.writing import written
from gpart.callbacks.packages import OfBoth, both, is_a
from gpart.callbacks.table import bytes_of
from gpart.errors import GPartError
from gpart.serialization.atomic import replacing
from gpart.serialization.checkpoint_file import (
    CHECKPOINT_KEY,
    check_checksums,
    load_checkpoint_file,
    unreadable,
)
from gpart.serialization.locations import readable


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
        self._connected: dict[str, tuple[str, Contents]] = {}
        self._said = False

    def connect(self, module: LightningModule, path: str, contents: Contents, name: str = "default") -> None:
        """Tells the plugin which submodule of which module is partly trained; the method's callback does.

        Args:
            module: the LightningModule; what was said of another one is forgotten.
            path: of the submodule.
            contents: what of it is trained.
            name: of the adapter; what was said of it before is forgotten.
        """
        if module is not self._module:
            self._connected = {}
        self._module = module
        self._connected[name] = (path, contents)

    @property
    def _parts(self) -> Parts:
        """The submodules that carry a method still, by path."""
        return {path: contents for path, contents in self._connected.values() if contents.attached}

    def frozen_keys(self) -> set[str]:
        """The keys of the connected module's state_dict that are not written."""
        if self._module is None:
            return set()
        return set(entries(named_by(self._module), frozen_tensors(self._module, self._parts)))

    def kept_bytes(self) -> int:
        """Bytes of the connected module's parameters and buffers that are written; each tensor once."""
        if self._module is None:
            return 0
        left_out = set() if any(contents.whole for contents in self._parts.values()) else self.frozen_keys()
        kept = (value for key, (_, value) in named_by(self._module).items() if key not in left_out)
        return bytes_of(value for value in kept if isinstance(value, Tensor))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Writes a checkpoint without the frozen parameters; objects in it as Lightning writes them."""
        if self._module is not None and (parts := self._parts):
            checkpoint = written(checkpoint, self._module, parts)
        try:
            checkpoint = with_objects(checkpoint)
        except NotPlainError as found:
            self._say(str(found))
        self._order.handed_in()
        try:
            self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options=storage_options)
        except Exception:
            self._order.taken_back()  # what was not written must not hold back removals
            raise

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint, checks it, and fills in the live frozen parameters.

        Args:
            path: the file.
            map_location: where its tensors go; default as the plugin that reads has it.
            weights_only: False unpickles the objects in it, which may run any code; the file is checked before that.
                Default as ``torch.load`` has it: nothing is run, and objects are an error that names their types.

        Raises:
            GPartFileError: if there is none at ``path``.
            GPartError: if it is damaged, holds objects, or does not fit the live model, with both values.
        """
        if (content := _content(path)) is not None:
            check_checksums(content, str(path))
            if weights_only is False:
                self._filled(load_checkpoint_file(content, str(path)), path)
        placed = {} if map_location is None else {"map_location": map_location}
        try:
            checkpoint = self.checkpoint_io.load_checkpoint(path, **placed, weights_only=weights_only)
        except FileNotFoundError:
            raise
        except Exception as error:  # on damaged files torch's reader raises whatever it stumbles over
            raise unreadable(content, str(path), error) from error
        return self._filled(as_given(checkpoint, weights_only, str(path), map_location), path)

    def _filled(self, checkpoint: dict[str, Any], path: _PATH) -> dict[str, Any]:
        if self._module is None:
            return checkpoint
        if not (parts := self._parts):
            entry = checkpoint.get(CHECKPOINT_KEY)
            if isinstance(entry, Mapping) and "tensors" not in entry:
                raise GPartError(
                    f"{path} holds an adapter, and the one of {type(self._module).__name__} was merged or taken off: read it"
                    " with gpart.callbacks.load_from_checkpoint, or write checkpoints that any module reads, by"
                    " GPartCallback(checkpoints='merged')"
                )
            return checkpoint
        complete = filled(checkpoint, str(path), self._module, parts)
        self._check_order(checkpoint, complete, path)
        return complete

    def _check_order(self, checkpoint: dict[str, Any], complete: dict[str, Any], path: _PATH) -> None:
        """An optimizer's state is told by the order of its parameters, and before 0.2 theta came after all others.

        Raises:
            GPartError: if a run would go on with the optimizer's numbers of other parameters.
        """
        trainer = self._module._trainer if self._module is not None else None
        if trainer is None or trainer.state.fn != "fit" or not checkpoint.get("optimizer_states"):
            return
        moved = sorted(set(checkpoint["state_dict"]) - set(complete["state_dict"]) - {HINT})
        if any(key.endswith(".theta") for key in moved):
            raise GPartError(
                f"{path} is from before theta's place in a container changed ({moved[-1]}), and the state of its optimizer is"
                " in the order of then: start anew from its theta and head, by GPartCallback(adapter=...) with this path and"
                " without ckpt_path"
            )

    def _say(self, found: str) -> None:
        if not self._said:
            rank_zero_warn(
                f"{found}: it is written as Lightning writes it, and read again with weights_only=False: Trainer.fit, validate,"
                " test and predict take that beside ckpt_path, and so does gpart.callbacks.load_from_checkpoint."
                " gpart.load_adapter reads the adapter in the file without"
            )
        self._said = True

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

    def taken_back(self) -> None:
        with self._lock:
            self._handed_in -= 1
        self._run()

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
        placed = {} if map_location is None else {"map_location": map_location}
        return self._inner.load_checkpoint(path, **placed, weights_only=weights_only)

    def remove_checkpoint(self, path: _PATH) -> None:
        self._inner.remove_checkpoint(path)

    def teardown(self) -> None:
        self._inner.teardown()


def _content(path: _PATH) -> Path | IO[bytes] | None:
    """What can be checked before the user's plugin reads it: a local file, or the content of a URL that fsspec knows."""
    try:
        return readable(path)[0]
    except GPartError:  # not there, or a place that only the user's plugin knows; it says so itself
        return None


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
