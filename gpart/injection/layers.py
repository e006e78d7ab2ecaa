"""What there is to adapt in one layer, and the real reason where there is nothing.

Invariant: asking changes nothing. What is found can be adapted: a floating-point parameter that the layer reads as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from gpart.errors import GPartError
from gpart.injection.names import is_adapted, named_modules

Cut = tuple[int, int | None]
"""(start, stop) along the dimension that :func:`output_dim` gives; None for its end."""


MERGE_FIRST = "Merge PEFT's adapter first: model = peft_model.merge_and_unload()"


def attributes_of(path: str, module: nn.Module, bias: bool, asked: str) -> Iterator[list[str]]:
    """The weights of a layer that ``target_modules`` has matched: each attribute, with its bias's where that is wanted.

    Args:
        path: the layer's.
        module: the layer.
        bias: whether biases are wanted.
        asked: the setting that has matched it, for messages.

    Raises:
        GPartError: if the layer has no weight that can be adapted, with the reason and what to do.
    """
    check_layer(path, module)
    if isinstance(module, nn.MultiheadAttention):
        names = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
        weights = [name for name in names if getattr(module, name) is not None]
        its = "in_proj_bias"
    else:
        weights, its = ["weight"], "bias"
    for weight in weights:
        check_parameter(path, module, weight, asked)
        with_bias = bias and weight == weights[-1] and isinstance(module._parameters.get(its), Tensor)
        yield [weight, its] if with_bias else [weight]


def check_shapes(model: nn.Module) -> None:
    """Checks that every parameter and buffer of a model has a shape: those of a lazy layer have none before its first run.

    Raises:
        GPartError: if one has none, also in a layer that is not adapted: what is frozen or saved is counted and copied.
    """
    for path, module in named_modules(model):
        held = (*module._parameters.values(), *module._buffers.values())
        if any(value is not None and is_lazy(value) for value in held):
            raise GPartError(
                f"{_what(path, module)} has no shape yet: run the lazy layer once before the adapter is attached"
            )


def check_layer(path: str, module: nn.Module) -> None:
    """Checks that a layer reads its weights as they are, and wants a dense gradient of them.

    Raises:
        GPartError: if not.
    """
    what = _what(path, module)
    if isinstance(module, LazyModuleMixin) and hasattr(module, "_initialize_hook"):
        # Its values were loaded, but its first run gives it another class, which would take the adapted one's place.
        raise GPartError(
            f"{what} becomes another class in its first run: run the lazy layer once before the adapter is attached"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise GPartError(f"{what} is scripted, and its code reads its weight itself: adapt it before torch.jit.script")
    if is_adapted(module):
        raise GPartError(f"{what} is parametrized already: it carries another adapter")
    if parametrize.is_parametrized(module):
        computed: list[str] = list(module.parametrizations)  # type: ignore[arg-type]  # a ModuleDict
        sources = [name for name, _ in module.named_parameters() if name.startswith("parametrizations.")]
        raise GPartError(
            f"{what} is parametrized already: its {computed} are computed in each forward pass from {sources}, as by"
            f" weight_norm. {_name_them(sources)}, or call torch's remove_parametrizations first"
        )
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        kind = type(module).__name__
        if module.sparse:
            raise GPartError(
                f"{path} is an {kind} with sparse=True, whose gradient has no dense form to reduce: make it with"
                " sparse=False"
            )
        if module.max_norm is not None:
            raise GPartError(f"{path} is an {kind} with max_norm={module.max_norm}, which rewrites its weight")


def check_parameter(path: str, module: nn.Module, attribute: str, asked: str) -> None:
    """Checks that a layer that a setting has matched holds a floating-point parameter under this name.

    Raises:
        GPartError: if not, with what it holds instead.
    """
    value = module._parameters.get(attribute)
    refused = f"{asked} matches {_what(path, module)}, which cannot be adapted"
    if value is None:
        raise GPartError(f"{refused}: it has no parameter {attribute!r}; {_instead(path, module, attribute)}")
    if not value.is_floating_point() or value.dim() == 0:
        held = f"a {value.dtype} of shape {tuple(value.shape)}"
        raise GPartError(
            f"{refused}: {attribute!r} must hold floating-point numbers in a dimension or more, not {held}"
        )
    if value.dtype.itemsize == 1:  # a packed weight has the dtype of its numbers
        raise GPartError(
            f"{refused}: {attribute!r} holds {value.dtype}, which torch cannot add to, and which means something only"
            " together with a scale of the layer's own. Load the base in bfloat16 or float32, such as by"
            " FineGrainedFP8Config(dequantize=True)"
        )


def output_dim(module: nn.Module, value: Tensor) -> int:
    """The dimension along which a layer's weight is cut: its first one, of Transformers' Conv1D the second.

    That is the one of the output features, but of transposed convolutions, whose first dimension is that of the inputs.
    """
    return 1 if _is_conv1d(module) and value.dim() > 1 else 0


def is_linear(module: nn.Module) -> bool:
    """Whether "all-linear" means this layer.

    >>> is_linear(nn.Linear(2, 2)), is_linear(nn.Conv2d(2, 2, 1))
    (True, False)
    """
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def is_wrapped(module: nn.Module) -> bool:
    """Whether a module is one of PEFT's, around a layer of the model."""
    return hasattr(module, "base_layer") and hasattr(module, "adapter_layer_names")


def padding_row(module: nn.Module, attribute: str) -> int | None:
    """The row of an embedding that torch never trains and that stays as it is, ``padding_idx``; None where there is none.

    >>> padding_row(nn.Embedding(4, 2, padding_idx=-1), "weight"), padding_row(nn.Linear(2, 2), "weight")
    (3, None)
    """
    if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or attribute != "weight":
        return None
    return module.padding_idx


def _instead(path: str, module: nn.Module, attribute: str) -> str:
    """Why a layer has no such parameter, and what to name in its place."""
    own = list(_own(module))
    if is_wrapped(module):
        return f"PEFT wraps it. {MERGE_FIRST}"
    if isinstance(getattr(module, attribute, None), Tensor):
        sources = [name for name in own if name.startswith(f"{attribute}_")]
        if sources:
            return (
                f"it is computed in each forward pass from {sources}, as by weight_norm, spectral_norm or pruning."
                f" {_name_them(sources)}, or make it a plain parameter again first (remove_weight_norm and the like)"
            )
        return "it is a plain tensor or a buffer, which is not trained"
    if isinstance(module, nn.RNNBase):
        return f"its weights are {own}. {_name_them([name for name in own if name.startswith('weight')])}"
    if own:
        return f"it holds {own}. {_name_them([name for name in own if 'bias' not in name] or own)}"
    below = f"{path}." if path else ""
    inside = [f"{below}{name}" for name, layer in named_modules(module) if name and list(_own(layer))]
    if inside:
        return f"it holds layers, and no parameter itself: name those in target_modules, such as {inside[:5]}"
    return "there is no parameter in it"


def _own(module: nn.Module) -> Iterator[str]:
    """The names of the parameters that a layer itself holds."""
    return (name for name, value in module._parameters.items() if value is not None)


def _name_them(names: list[str]) -> str:
    shown = names if len(names) <= 4 else [*names[:3], "..."]
    return f"Name them in target_parameters={shown}"


def _what(path: str, module: nn.Module) -> str:
    return f"{path or 'the model'} ({type(module).__name__})"


def _is_conv1d(module: nn.Module) -> bool:
    """Transformers' Conv1D, a linear layer with a transposed weight, known without importing transformers."""
    return hasattr(module, "nf") and any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
