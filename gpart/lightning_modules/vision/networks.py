"""Builds image classifiers of Transformers and of timm, which are then used in the same way.

Invariant: a network is in training mode when it is built, so that dropout is on for every method. If the checkpoint's
head does not fit the number of classes, the head is new and random; all other weights are the checkpoint's.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from gpart.assets.fetching import loading
from gpart.assets.hub_reason import hub_reason
from gpart.errors import GPartError, GPartFileError
from gpart.heads import head_modules

TIMM = "timm:"


def build(model: str, num_labels: int, labels: list[str] | None = None) -> nn.Module:
    """Builds a pretrained image classifier with ``num_labels`` outputs, in training mode.

    Args:
        model: for Transformers, a name on the hub, a folder, or ``packaged:NAME``; for timm, ``timm:NAME``,
            ``timm:hf-hub:NAME`` or ``timm:FOLDER`` (a folder with timm's config.json and weights).
        num_labels: the number of classes.
        labels: the classes' names, for the config of a Transformers model.

    Raises:
        GPartFileError: if there is no such model.
        GPartError: if the model can't be read, or has no weights that fit.
    """
    if model.startswith(TIMM):
        return _build_timm(model[len(TIMM) :], num_labels).train()
    names = labels or [f"LABEL_{i}" for i in range(num_labels)]  # Transformers' own default
    with loading(model) as place:
        built: nn.Module = AutoModelForImageClassification.from_pretrained(
            place,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
            # A head of another size, such as ImageNet's, is replaced by a new one. Its weights are then not marked as
            # loaded, just as if the checkpoint had no head.
            ignore_mismatched_sizes=True,
        )
    return built.train()


def timm_head_is_new(network: nn.Module) -> bool:
    """Returns whether timm has replaced the checkpoint's head by a random one, for another number of classes."""
    pretrained: Any = getattr(network, "pretrained_cfg", None)
    return isinstance(pretrained, dict) and pretrained.get("num_classes") != getattr(network, "num_classes", None)


def new_parameters(network: nn.Module) -> list[str]:
    """The names of the parameters that are random, since the checkpoint has none that fit."""
    named = dict(network.named_parameters())
    if timm_head_is_new(network):
        return [name for name in named if any(name.startswith(f"{head}.") for head in head_modules(network))]
    # Transformers marks the parameters that it has loaded. Without any mark, it has loaded none and tells nothing.
    loaded = {name for name, value in named.items() if getattr(value, "_is_hf_initialized", False)}
    return [name for name in named if loaded and name not in loaded]


def logits_of(output: Any) -> Tensor:
    """Returns the logits in a network's output, of shape (batch, classes).

    timm's networks return the logits, and Transformers' return an object with the attribute ``logits``.

    Raises:
        GPartError: if the output has neither form.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise GPartError(f"an image classifier returns logits or an object with .logits, got {type(output).__name__}")
    return logits


def _build_timm(name: str, num_labels: int) -> nn.Module:
    import timm  # noqa: PLC0415  # 230 modules that most runs do without

    if Path(name).is_dir():
        _check_timm_folder(name)
        name = f"local-dir:{name}"
    elif ":" not in name and any(sign in name for sign in "/\\"):
        raise GPartFileError(
            f"model='{TIMM}{name}': there is no folder {name}; a name on the hub is written '{TIMM}hf-hub:{name}'"
        )
    elif ":" not in name and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise GPartFileError(f"model='{TIMM}{name}': timm {timm.__version__} has no model {name!r}; near it are {near}")
    try:
        built: nn.Module = timm.create_model(name, pretrained=True, num_classes=num_labels)
    except OSError as error:
        why = hub_reason(name.removeprefix("hf-hub:"), error)
        raise GPartFileError(f"model='{TIMM}{name}' can't be loaded, as a folder or from the hub: {why}") from error
    except (RuntimeError, ValueError, SafetensorError) as error:
        # An unknown name, no weights of that tag, weights of other shapes, a damaged file.
        raise GPartError(f"model='{TIMM}{name}' with {num_labels} classes: {error}") from error
    return built


def _check_timm_folder(folder: str) -> None:
    """Checks that a folder's config.json is timm's."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise GPartError(f"model='{TIMM}{folder}': its config.json can't be read: {error}") from error
    if not isinstance(config, dict) or "architecture" not in config:
        raise GPartError(
            f"model='{TIMM}{folder}': the folder holds no timm model, whose config.json names its \"architecture\"; a"
            f" Transformers folder is written without {TIMM!r}"
        )
