"""Which class of Transformers an adapter was trained on, and with how many classes.

Invariant: a class is chosen by names and shapes alone, on a model without memory; no weight is read for it.

A ``config.json`` says which class wrote the weights, often a bare encoder. The adapter was trained on another: with a
head, whose shape is in its file. The classes are tried in the order of :data:`CLASSES`, those first that the config
names. The number of frozen parameters, which the manifest's ``parts`` tell, decides between classes that both fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpart.errors import GPartError
from gpart.injection.fingerprint import shortened_length
from gpart.injection.modules import theta_key
from gpart.injection.names import named_buffers, named_parameters
from gpart.injection.nearby import inside, outside
from gpart.serialization.manifest import Manifest

CLASSES = (
    "AutoModelForSequenceClassification",
    "AutoModelForMaskedLM",  # before the next: an encoder is masked, though it has a causal variant of the same names
    "AutoModelForCausalLM",
    "AutoModelForImageClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageTextToText",
    "AutoModel",
)
"""Tried in this order, after those that a config names."""

RETURN_IT = "Name a function of yours that returns what was adapted, as python:MODULE:FUNCTION"
"""What to do where an adapter's base is a part of the model that is named, or a whole that it is a part of."""


@dataclass(frozen=True)
class Needs:
    """What an adapter needs of its base: names and shapes."""

    adapted: dict[str, tuple[int, ...]]
    """The adapted weights."""

    held: dict[str, tuple[int, ...]]
    """The saved modules' parameters, and the changed buffers."""

    parts: int = 0
    """The number of letters in the manifest's ``parts``; 0 in files of format 1."""

    @classmethod
    def of(cls, manifest: Manifest, tensors: Mapping[str, Tensor]) -> Needs:
        """Those of an adapter that was read."""
        try:
            adapted = {str(item[0]): tuple(map(int, item[1])) for item in manifest.weights}
        except (TypeError, ValueError, IndexError) as error:
            raise GPartError(f"the adapter's list of weights is damaged: {manifest.weights!r:.200}") from error
        theta = theta_key(manifest.name)
        held = {name: tuple(value.shape) for name, value in tensors.items() if name != theta}
        return cls(adapted, held, len(manifest.parts))

    def lacking(self, model: nn.Module) -> list[str]:
        """What a model lacks, in words; nothing where the adapter fits."""
        mine = _shapes(model, self.held)
        found = []
        for what, needed in (("adapted weights", self.adapted), ("saved tensors", self.held)):
            missing = [name for name in needed if name not in mine]
            if missing:
                more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
                found.append(f"it lacks {len(missing)} of {len(needed)} {what}, {', '.join(missing[:3])}{more}")
            other = [name for name, shape in needed.items() if name in mine and mine[name] != shape]
            if other:
                shapes = f"{list(mine[other[0]])}, in the adapter {list(needed[other[0]])}"
                found.append(f"{len(other)} {what} have another shape, as {other[0]}: here {shapes}")
        return found

    def near(self, model: nn.Module) -> str:
        """Where in a model the adapted weights are, or of what it is the part that has them, in words; else nothing."""
        return inside(model, self.adapted) or outside(model, self.adapted)

    def off(self, model: nn.Module) -> tuple[int, int]:
        """How far a model is from what is needed: names that it lacks, then names with another shape."""
        mine, needed = _shapes(model, self.held), {**self.adapted, **self.held}
        return sum(name not in mine for name in needed), sum(mine.get(name) != shape for name, shape in needed.items())

    def as_many_frozen(self, model: nn.Module) -> bool:
        """Whether a model has as many frozen parameters as the adapter's base had."""
        if not self.parts:
            return True
        return shortened_length(len(set(named_parameters(model)) - set(self.held))) == self.parts


def head_size(model: nn.Module, needs: Needs) -> int | None:
    """How many classes an adapter's head has where the model's has another number; None where they agree.

    Example:
        >>> needs = Needs({}, {"1.weight": (3, 4), "1.bias": (3,)})
        >>> head_size(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), needs)
        3
    """
    mine = _shapes(model, needs.held)
    sizes = {
        shape[0]
        for name, shape in needs.held.items()
        if name in mine and shape and mine[name] != shape and mine[name][1:] == shape[1:]
    }
    return sizes.pop() if len(sizes) == 1 else None


def choose(config: Any, needs: Needs | None, model_class: str | None, source: str) -> tuple[Any, int | None]:
    """The class to load a model as, and how many classes its head is to have.

    Args:
        config: of Transformers.
        needs: the adapter's; None takes the class that the config names.
        model_class: the user's own choice of a class.
        source: the model, for messages.

    Returns:
        The class; the number of classes where it is not the config's.

    Raises:
        GPartError: if no class fits, with what the nearest lacks.
    """
    tried: list[tuple[tuple[int, int], str]] = []
    fits: list[tuple[Any, int | None]] = []
    for found in _classes(config, model_class):
        model = _empty(found, config)
        if model is None or (model_class is None and any(type(model) is each for each, _ in fits)):
            continue
        if needs is None:
            return type(model), None
        labels = head_size(model, needs)
        if labels is not None:
            resized = deepcopy(config)
            resized.num_labels = labels
            model = _empty(found, resized) or model
        if lacking := needs.lacking(model):
            if model_class is None and (near := needs.near(model)):
                lacking.append(f"{near}. {RETURN_IT}")
            tried.append((needs.off(model), f"as {type(model).__name__} {'; '.join(lacking)}"))
        elif needs.as_many_frozen(model):
            return type(model), labels
        else:
            fits.append((type(model), labels))
    if fits:
        return fits[0]
    if not tried:
        asked = model_class or f"one of {', '.join(CLASSES)}"
        raise GPartError(f"base {source!r}: Transformers builds no {type(config).__name__} as {asked}")
    raise GPartError(f"base {source!r} is not this adapter's: {min(tried, key=lambda one: one[0])[1]}")


def _classes(config: Any, model_class: str | None) -> Iterator[Any]:
    import transformers  # noqa: PLC0415  # seconds, and only who loads a model needs it

    named = [model_class] if model_class else [*(getattr(config, "architectures", None) or []), *CLASSES]
    for name in dict.fromkeys(map(str, named)):
        found = getattr(transformers, name, None)
        if isinstance(found, type) and hasattr(found, "from_pretrained") and name.isidentifier():
            yield found
        elif model_class:
            raise GPartError(f"--model-class {model_class}: Transformers {transformers.__version__} has no such class")


def _empty(found: Any, config: Any) -> nn.Module | None:
    """A model without memory; None where the class is not for this kind of config."""
    own = deepcopy(config)  # Transformers changes it
    if getattr(own, "quantization_config", None) is not None:
        del own.quantization_config  # names and shapes are those of the plain model
    try:
        with torch.device("meta"):
            if hasattr(found, "from_config"):
                model: nn.Module = found.from_config(own, trust_remote_code=False)
            elif issubclass(type(own), getattr(found, "config_class", None) or ()):
                model = found(own)
            else:
                return None
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, NotImplementedError):
        return None
    return model


def _shapes(model: nn.Module, held: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes by name; a buffer's is the adapter's where only lengths differ, since such a one takes its place."""
    buffers = {name: tuple(value.shape) for name, value in named_buffers(model).items()}
    buffers |= {name: held[name] for name, shape in buffers.items() if name in held and len(held[name]) == len(shape)}
    return {
        name: tuple(value.shape) for name, value in named_parameters(model, remove_duplicate=False).items()
    } | buffers
