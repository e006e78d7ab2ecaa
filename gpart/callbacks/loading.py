"""From a checkpoint back to a LightningModule, which Lightning's own ``load_from_checkpoint`` cannot do.

``LightningModule.load_from_checkpoint`` reads the file itself and never asks a plugin, so it meets a state_dict without
the frozen weights. This builds the module by Lightning's own code, then attaches the adapter and fills it.
"""

from __future__ import annotations

import io
import warnings
from os import PathLike
from typing import IO, Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import nn

from gpart.adapter import attach_plan, get_adapters
from gpart.callbacks.baselines import BitFit, FullFineTuning, LinearProbe
from gpart.callbacks.checkpoints.contents import AdapterContents
from gpart.callbacks.checkpoints.plugin import Contents, filled
from gpart.callbacks.method import MethodCallback
from gpart.callbacks.peft_callback import PeftCallback
from gpart.config import MemoryPolicy
from gpart.errors import GPartError
from gpart.loading import check_manifest_name, check_model
from gpart.serialization.checkpoint_file import CHECKPOINT_KEY, load_checkpoint_file
from gpart.serialization.manifest import read_manifest

Module = TypeVar("Module", bound=LightningModule)


def load_from_checkpoint(
    cls: type[Module],
    path: str | PathLike[str] | IO[bytes],
    map_location: Any = "cpu",
    check_base: bool = True,
    **kwargs: Any,
) -> Module:
    """Builds a LightningModule from a checkpoint that holds what a method trained: an adapter, or a probe's head.

    Args:
        cls: the LightningModule's class; the base weights come from its own ``__init__`` or ``configure_model``.
        path: the ``.ckpt``: a local path, a URL that fsspec knows, or a file object.
        map_location: where the module goes.
        check_base: False loads onto another base of the same shape, with a warning.
        **kwargs: arguments for ``cls``, in place of the saved hyperparameters.

    Returns:
        The module, in the mode that its own code leaves it in; its adapter is
        ``gpart.get_adapters(module.<submodule>)["default"]``.

    Raises:
        GPartFileError: if there is no such file.
        GPartError: if the file is damaged, holds no adapter, or does not fit the module that was built.
    """
    checkpoint = load_checkpoint_file(path)
    entry = checkpoint.get(CHECKPOINT_KEY)
    described = entry.get("manifest") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(described, dict):
        raise GPartError(f"{path} holds no GPart adapter: use {cls.__name__}.load_from_checkpoint for it")
    buffer = io.BytesIO()
    torch.save({**checkpoint, "state_dict": {}}, buffer)
    buffer.seek(0)
    # strict=False and no state: Lightning builds the module from its hyperparameters and leaves its weights alone.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*contains no parameters|.*keys that are in the model state dict")  # meant
        module = cls.load_from_checkpoint(buffer, map_location=map_location, strict=False, weights_only=True, **kwargs)
    source = str(path)
    network = _network(module, entry["module"], source)
    if "method" in described:
        contents = _method(described, source).apply(network)
    else:
        contents = _adapted(network, described, source, check_base)
    complete = filled(checkpoint, source, module, entry["module"], contents)
    module.load_state_dict(complete["state_dict"], strict=True)
    return module.to(map_location) if isinstance(map_location, (str, torch.device)) else module


def _adapted(network: nn.Module, described: dict[str, Any], source: str, check_base: bool) -> Contents:
    manifest = read_manifest(described, source)
    adapter = get_adapters(network).get(check_manifest_name(manifest, source))
    if adapter is None:
        plan = check_model(network, manifest, source, check_base)
        adapter = attach_plan(network, manifest.config, manifest.name, plan, MemoryPolicy())
    return AdapterContents(adapter, check_base)


def _method(described: dict[str, Any], source: str) -> MethodCallback:
    known: dict[str, type[MethodCallback]] = {
        cls.__name__: cls for cls in (BitFit, FullFineTuning, LinearProbe, PeftCallback)
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
        return module.get_submodule(path)
    except AttributeError:
        raise GPartError(
            f"{source} adapts submodule {path!r}, and {type(module).__name__} has"
            f" {[name for name, _ in module.named_children()]}: build the network in __init__ or configure_model"
            " (load_from_checkpoint calls no setup), or give the file to a Trainer as ckpt_path"
        ) from None
