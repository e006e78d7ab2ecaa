"""Image classifiers of Transformers and of timm as one kind of network: pictures in, logits out, one named head.

Invariant: what is built is in training mode, whatever the library returns, so that dropout is on for every method
alike; a head that does not fit the number of classes is new and random, and the rest is the checkpoint's.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForImageClassification, PreTrainedModel

from gpart.assets.fetching import loading

TIMM = "timm:"


def build(model: str, num_labels: int, labels: list[str] | None = None) -> nn.Module:
    """A pretrained image classifier with ``num_labels`` outputs, in training mode.

    Args:
        model: for Transformers a name on the hub, a folder, or ``packaged:NAME``; for timm ``timm:NAME``,
            ``timm:hf-hub:NAME`` or ``timm:FOLDER`` (a folder with timm's config.json and weights).
        num_labels: number of classes.
        labels: the classes' names, for a Transformers model's config.

    Raises:
        FileNotFoundError: if the model or a timm folder is not there.
        ValueError: if the model cannot be read, or timm has no such model, or no weights of it that fit.
    """
    if model.startswith(TIMM):
        return _build_timm(model[len(TIMM) :], num_labels).train()
    names = labels or [f"LABEL_{i}" for i in range(num_labels)]  # Transformers' own default
    with loading(model) as place:
        built: nn.Module = AutoModelForImageClassification.from_pretrained(
            place,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
            # ImageNet's head is replaced by a new one. It is then not marked as loaded, as if the checkpoint had none.
            ignore_mismatched_sizes=True,
        )
    return built.train()


def head_name(network: nn.Module) -> str:
    """The classification head's name in the network: ``classifier`` in Transformers, timm's ``get_classifier()``.

    Raises:
        ValueError: if a timm network has several heads, or none.
    """
    if isinstance(network, PreTrainedModel):
        return "classifier"
    classifier = network.get_classifier()  # type: ignore[operator]  # timm's
    names: list[str] = [name for name, module in network.named_modules() if module is classifier]
    if not names:
        raise ValueError(
            f"timm's {type(network).__name__} has no single head but {classifier}: name one of"
            f" {[name for name, _ in network.named_children()]} by head=..."
        )
    return names[0]


def timm_head_is_new(network: nn.Module) -> bool:
    """Whether timm has just replaced the checkpoint's head by a random one, since the classes differ in number."""
    pretrained: Any = getattr(network, "pretrained_cfg", None)
    return isinstance(pretrained, dict) and pretrained.get("num_classes") != getattr(network, "num_classes", None)


def logits_of(output: Any) -> Tensor:
    """A network's logits, shape (batch, classes): timm returns them, Transformers an object that has them.

    Raises:
        ValueError: if the output has neither form.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(f"an image classifier returns logits or an object with .logits, got {type(output).__name__}")
    return logits


def _build_timm(name: str, num_labels: int) -> nn.Module:
    import timm  # as late as this: it takes a second, and most runs do without

    if Path(name).is_dir():
        config = Path(name) / "config.json"
        if not config.is_file() or "architecture" not in json.loads(config.read_text(encoding="utf-8")):
            raise ValueError(
                f"model='{TIMM}{name}': the folder holds no timm model, whose config.json names its \"architecture\"; a"
                f" Transformers folder is written without {TIMM!r}"
            )
        name = f"local-dir:{name}"
    elif ":" not in name and any(sign in name for sign in "/\\"):
        raise FileNotFoundError(
            f"model='{TIMM}{name}': there is no folder {name}; a name on the hub is written '{TIMM}hf-hub:{name}'"
        )
    elif ":" not in name and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(f"model='{TIMM}{name}': timm {timm.__version__} has no model {name!r}; near it are {near}")
    try:
        built: nn.Module = timm.create_model(name, pretrained=True, num_classes=num_labels)
    except RuntimeError as error:  # no weights of that tag, or weights of other shapes
        raise ValueError(f"model='{TIMM}{name}' with {num_labels} classes: {error}") from error
    return built
