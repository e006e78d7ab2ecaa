"""From a checkpoint back to a LightningModule, which Lightning's own ``load_from_checkpoint`` cannot do.

``LightningModule.load_from_checkpoint`` reads the file itself and never asks a plugin, so it meets a state_dict without
the frozen weights. This lets Lightning build the module and load it, and in between attaches the adapter and fills in the
frozen weights.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock, get_ident
from typing import IO, Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.saving import _default_map_location
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from gpart.adapter import attach_plan, get_adapters
from gpart.adapters import set_active
from gpart.callbacks.baselines import BitFit, FullFineTuning, LinearProbe, PartialFineTuning, Selection
from gpart.callbacks.checkpoints.contents import AdapterContents
from gpart.callbacks.checkpoints.filling import Contents, filled
from gpart.callbacks.checkpoints.hyperparameters import OBJECTS_KEY, as_given, read_otherwise
from gpart.callbacks.copies import adapt_copies
from gpart.callbacks.method import MethodCallback
from gpart.callbacks.peft_callback import PeftCallback
from gpart.config import MemoryPolicy
from gpart.errors import GPartError
from gpart.injection.names import get_submodule
from gpart.loading import check_manifest_name, check_model
from gpart.materialize.active import bare
from gpart.serialization.checkpoint_file import (
    CHECKPOINT_KEY,
    NETWORKS,
    SEVERAL,
    entries_in,
    load_checkpoint_file,
    unreadable,
)
from gpart.serialization.folder import read_trained
from gpart.serialization.locations import readable
from gpart.serialization.manifest import read_manifest

Module = TypeVar("Module", bound=LightningModule)

_LOADING = RLock()
"""Held while a class has another ``on_load_checkpoint`` than its own."""


def load_from_checkpoint(
    cls: type[Module],
    checkpoint_path: Any,
    map_location: Any = None,
    hparams_file: Any = None,
    strict: bool | None = None,
    weights_only: bool | None = None,
    *,
    check_base: bool = True,
    **kwargs: Any,
) -> Module:
    """Builds a LightningModule from a checkpoint that holds what a method trained: an adapter, or a probe's head.

    The arguments are those of ``LightningModule.load_from_checkpoint``, which does the building.

    Args:
        cls: the LightningModule's class; the base weights come from its own ``__init__`` or ``configure_model``.
        checkpoint_path: the ``.ckpt``: a local path, a URL that fsspec knows, or a file object.
        map_location: where the module goes; default where its tensors were saved.
        hparams_file: a ``.yaml`` or ``.csv`` in place of the saved hyperparameters.
        strict: whether the keys have to agree; default as the module's ``strict_loading`` says.
        weights_only: False where the file holds objects and is trusted: reading them may run any code. Without it a
            hyperparameter that was a path, an array, a namedtuple or a dict of a class of its own is a str, a tensor, a
            tuple or a dict.
        check_base: False loads onto another base of the same shape, with a warning.
        **kwargs: arguments for ``cls``, in place of the saved hyperparameters.

    Returns:
        The module, in the mode that its own code leaves it in; its adapter is
        ``gpart.get_adapters(module.<submodule>)["default"]``. Its ``on_load_checkpoint`` sees the whole state, with the
        frozen weights filled in, and what it changes there is loaded.

    Raises:
        GPartFileError: if there is no such file.
        GPartError: if the file is damaged, holds no adapter, holds objects without ``weights_only=False``, or does not
            fit the module that was built.
    """
    content, source = readable(checkpoint_path)
    found = load_checkpoint_file(content, source)
    held: Any = found.get(CHECKPOINT_KEY)
    entry: dict[str, Any] = held if isinstance(held, dict) else {}
    several = SEVERAL in entry
    described = entries_in(found, source) if several else [entry]
    if not all(isinstance(one.get("manifest"), dict) for one in described):
        raise GPartError(f"{source} holds no GPart adapter: use {cls.__name__}.load_from_checkpoint for it")

    read: list[AdapterContents] = []

    def complete(module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("state_dict")
        placed = [value for value in state.values() if isinstance(value, Tensor)] if isinstance(state, dict) else []
        if placed:  # Lightning moves it to its first tensor's device, and that will be the module's own
            module.to(placed[0].device)
        parts: dict[str, Contents] = {}
        for one in described:
            path = one["module"]
            network = _network(module, path, source)
            if "method" in one["manifest"]:
                parts[path] = _method(one["manifest"], source).apply(network)
                continue
            parts[path] = adapted = _adapted(network, one["manifest"], source, check_base, _copies(one, source))
            read.append(adapted)
            adapt_copies(adapted.adapter, module, adapted.copies)
        for path in parts if several else ():
            _activate(get_submodule(module, path), _of_network(entry, path, source), source)
        checkpoint.update(filled(checkpoint, source, module, parts, strict))

    with_types: IO[bytes] | None = None
    if weights_only is False and OBJECTS_KEY in found:
        with_types = _with_types(content, source, map_location)
    elif others := read_otherwise(found, cls.CHECKPOINT_HYPER_PARAMS_KEY):
        rank_zero_warn(
            f"{source} is read without the types of {others}: each comes as a plain dict, tuple, str or tensor. If you trust"
            " the file, which may run any code then, weights_only=False reads them as they were"
        )
    try:
        with _before_loading(_built_class(cls, found), complete):
            loaded = cls.load_from_checkpoint(
                with_types if with_types is not None else checkpoint_path,
                map_location=map_location,
                hparams_file=hparams_file,
                strict=strict,
                weights_only=weights_only,
                **kwargs,
            )
    except pickle.UnpicklingError as error:
        raise unreadable(content, source, error) from error
    for contents in read:
        contents.check_loaded()
        contents.adapter.restored = True
    return loaded


def load_method(network: nn.Module, folder: str) -> MethodCallback:
    """Puts what a baseline (BitFit, a probe, partial or full fine-tuning) has written to ``save_folder`` onto its base.

    PEFT's methods write PEFT's own folder, which ``peft.PeftModel.from_pretrained`` reads, and an adapter is read by
    :func:`gpart.load_adapter`.

    Args:
        network: the base network; what the method does not train is frozen.
        folder: a path or a URL.

    Returns:
        The method's callback, as it has been applied.

    Raises:
        GPartFileError: if there is no such folder, or a file is missing in it.
        GPartError: if a file was changed, or the folder does not fit the network, which is then as it was.
    """
    method = _method(read_trained(folder)[0], folder)
    if not isinstance(method, Selection):
        raise GPartError(f"{folder} was written by {type(method).__name__}, which writes no such folder")
    method.start = folder
    method.apply(network)
    return method


def _with_types(content: Path | IO[bytes], source: str, map_location: Any) -> IO[bytes]:
    """The file as Lightning would have written it, which its reader takes; in memory."""
    if not isinstance(content, Path):
        content.seek(0)
    place: Any = map_location or _default_map_location
    whole = torch.load(content, map_location=place, weights_only=False)
    torch.save(as_given(whole, False, source, map_location), file := io.BytesIO())
    file.seek(0)
    return file


@contextmanager
def _before_loading(
    cls: type[LightningModule], complete: Callable[[LightningModule, dict[str, Any]], None]
) -> Iterator[None]:
    """Within it ``complete`` comes right before the ``on_load_checkpoint`` of what this thread builds of a class.

    Lightning builds the module and reads its file in one function, and this is the only hook between the two.
    """
    own, thread = cls.__dict__.get("on_load_checkpoint"), get_ident()
    plain = cls.on_load_checkpoint

    def on_load_checkpoint(module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if get_ident() == thread:
            complete(module, checkpoint)
        plain(module, checkpoint)

    on_load_checkpoint.__module__ = plain.__module__  # whether the class has one of its own
    with _LOADING:
        cls.on_load_checkpoint = on_load_checkpoint  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del cls.on_load_checkpoint
            if own is not None:
                cls.on_load_checkpoint = own  # type: ignore[method-assign]


def _built_class(cls: type[LightningModule], checkpoint: dict[str, Any]) -> type[LightningModule]:
    """The class that will be built: that of LightningCLI's subclass mode stands in the hyperparameters."""
    saved = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY)
    path = saved.get("_class_path") if isinstance(saved, dict) else None
    if not isinstance(path, str):
        return cls
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)  # Lightning imports nothing for it either
    return found if isinstance(found, type) and issubclass(found, cls) else cls


def _adapted(
    network: nn.Module, described: dict[str, Any], source: str, check_base: bool, copies: tuple[str, ...]
) -> AdapterContents:
    manifest = read_manifest(described, source)
    adapter = get_adapters(network).get(check_manifest_name(manifest, source))
    if adapter is None:
        with bare(network) as beside:
            plan = check_model(network, manifest, source, check_base, beside)
        adapter = attach_plan(network, manifest.config, manifest.name, plan, MemoryPolicy())
    adapter.about = manifest.about.over(adapter.about)
    return AdapterContents(adapter, check_base, copies=copies)


def _activate(network: nn.Module, entry: dict[str, Any], source: str) -> None:
    """Makes those adapters active that were when the file was written."""
    active = entry.get("active")
    if not isinstance(active, dict) or not all(isinstance(factor, float) for factor in active.values()):
        raise GPartError(f"{source} says which adapters are active by {active!r}, where names and factors are expected")
    set_active(network, list(active), list(active.values()), entry.get("heads"))


def _of_network(entry: dict[str, Any], path: str, source: str) -> dict[str, Any]:
    """What the file says of the adapters of one of several networks."""
    networks = entry.get(NETWORKS, {path: entry})
    found = networks.get(path) if isinstance(networks, dict) else networks
    if not isinstance(found, dict):
        raise GPartError(f"{source} says of the adapters of {path!r} {found!r}, where a dict is expected")
    return found


def _copies(entry: dict[str, Any], source: str) -> tuple[str, ...]:
    copies = entry.get("copies", [])  # which were not there before 0.2
    if not isinstance(copies, list) or not all(isinstance(path, str) for path in copies):
        raise GPartError(f"{source} names copies of the network by {copies!r}, where a list of paths is expected")
    return tuple(copies)


def _method(described: dict[str, Any], source: str) -> MethodCallback:
    known: dict[str, type[MethodCallback]] = {
        cls.__name__: cls for cls in (BitFit, FullFineTuning, LinearProbe, PartialFineTuning, PeftCallback)
    }
    name, settings = described["method"], described.get("settings")
    if name not in known or not isinstance(settings, dict):
        raise GPartError(f"{source} was trained by {name!r} with {settings!r}; known here are {list(known)}")
    try:
        return known[name](**settings)
    except TypeError as error:
        raise GPartError(f"{source}: {name} does not take {settings}: {error}") from error


def _network(module: LightningModule, path: str, source: str) -> nn.Module:
    if not path:
        return module
    try:
        return get_submodule(module, path)
    except AttributeError:
        raise GPartError(
            f"{source} adapts submodule {path!r}, and {type(module).__name__} has"
            f" {[name for name, _ in module.named_children()]}: give the network as an argument where __init__ takes it"
            " (load_from_checkpoint(cls, path, net=...)), build it in __init__ or configure_model (load_from_checkpoint"
            " calls no setup), or give the file to a Trainer as ckpt_path"
        ) from None
