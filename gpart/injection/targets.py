"""From a config and a model to the plan: which entries of which weights, in which order, and what is frozen.

Invariant: making a plan changes nothing, and a plan that exists can be carried out. The adapted weights are joined in
the order of ``model.named_modules()``, each row-major, a bias right after its weight; a weight that several modules
share stands once, at its first owner, and names all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from gpart.config import GPartConfig
from gpart.errors import GPartError
from gpart.injection.names import get_submodule, is_adapted, named_modules, named_parameters

ALL_LINEAR = "all-linear"
# Attribute names by convention for a classifier head, as in PEFT (tuners_utils.py, SEQ_CLS_HEAD_NAMES).
_HEADS = ("score", "classifier")


@dataclass(frozen=True)
class AdaptedWeight:
    """One adapted parameter and where its blocks stand in the flat vector of length D.

    Attributes:
        name: as in ``model.named_parameters()`` before attach.
        shape: the parameter's shape.
        dim: the dimension along which it is cut into blocks (that of the output features).
        blocks: (start, stop, offset): indices start to stop - 1 along ``dim`` stand at ``offset`` of the vector.
        owners: every (module path, attribute) that holds this same parameter.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    blocks: tuple[tuple[int, int, int], ...]
    owners: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Plan:
    """What attach will do: the adapted weights, their total size D, and the saved and the frozen parameters' names."""

    weights: tuple[AdaptedWeight, ...]
    size: int
    saved: tuple[str, ...]
    frozen: tuple[str, ...]


def matches(name: str, patterns: list[str] | str | None) -> bool:
    """Whether a module's name is meant by ``patterns``: a regular expression for the whole name, or endings.

    Example:
        >>> matches("encoder.layer.0.query", ["query", "value"]), matches("encoder.subquery", ["query"])
        (True, False)
    """
    if patterns is None:
        return False
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def plan(model: nn.Module, config: GPartConfig) -> Plan:
    """The plan for this model.

    Raises:
        GPartError: if a pattern matches nothing, a matched layer cannot be adapted, or d is larger than D; with what
            was asked and what there was to match.
    """
    saved_paths, saved = saved_parameters(model, config.modules_to_save)
    targets = _targets(model, config, saved_paths)
    owners: dict[int, list[tuple[str, str]]] = {}
    for path, module in named_modules(model):
        for attribute, value in module._parameters.items():
            if value is not None:
                owners.setdefault(id(value), []).append((path, attribute))
    every = named_parameters(model, remove_duplicate=False)
    first_name = {id(value): name for name, value in reversed(every.items())}
    saved_ids = {id(every[name]) for name in saved}

    weights: dict[str, AdaptedWeight] = {}
    seen: set[int] = set()
    offset = 0
    for path, module in targets:
        blocks_of: dict[str, list[tuple[int, int, int]]] = {}
        dims: dict[str, int] = {}
        for attributes, dim, cuts in _layout(path, module, config):
            for start, stop in cuts:
                for attribute in attributes:
                    value = getattr(module, attribute)
                    name = first_name[id(value)]
                    if id(value) in seen:
                        continue
                    if id(value) in saved_ids:
                        raise GPartError(f"{name} is tied to a parameter of modules_to_save={config.modules_to_save}")
                    dims[attribute] = dim if value.dim() > 1 else 0
                    length = value.shape[dims[attribute]]
                    stride = value.numel() // max(length, 1)
                    end = length if stop is None else stop
                    if end > length:
                        raise GPartError(f"slices reach to {end}, but {name} has {length} output features")
                    blocks_of.setdefault(attribute, []).append((start, end, offset))
                    offset += (end - start) * stride
        for attribute, blocks in blocks_of.items():
            value = getattr(module, attribute)
            name = first_name[id(value)]
            seen.add(id(value))
            weights[name] = AdaptedWeight(
                name, tuple(value.shape), dims[attribute], tuple(blocks), tuple(owners[id(value)])
            )
    if config.d > offset:
        raise GPartError(
            f"d={config.d} is more than the {offset} weights that target_modules={config.target_modules!r} adapts"
        )
    saved_set = {name for name, value in named_parameters(model).items() if id(value) in saved_ids}
    frozen = tuple(name for name in named_parameters(model) if name not in saved_set)
    return Plan(tuple(weights.values()), offset, tuple(sorted(saved_set)), frozen)


def saved_parameters(model: nn.Module, patterns: list[str] | None) -> tuple[list[str], list[str]]:
    """The paths of the modules that ``modules_to_save`` names, and the names of all their parameters.

    Raises:
        GPartError: if a pattern matches no module, or only modules without parameters.
    """
    paths: list[str] = []
    for pattern in patterns or []:
        found = [path for path, _ in named_modules(model) if matches(path, [pattern])]
        if not any(True for path in found for _ in get_submodule(model, path).parameters()):
            raise GPartError(
                f"modules_to_save={patterns!r}: {pattern!r} matches no module with parameters; there are {_names(model)}"
            )
        paths += found
    names = [
        name
        for name in named_parameters(model, remove_duplicate=False)
        if any(name.startswith(f"{path}.") for path in paths)
    ]
    return paths, names


def _targets(model: nn.Module, config: GPartConfig, saved_paths: list[str]) -> list[tuple[str, nn.Module]]:
    modules = named_modules(model)
    exclude = config.exclude_modules
    for pattern in [exclude] if isinstance(exclude, str) else exclude or []:
        one = pattern if isinstance(exclude, str) else [pattern]
        if not any(matches(path, one) for path, _ in modules):
            raise GPartError(f"exclude_modules={exclude!r}: {pattern!r} matches no module; there are {_names(model)}")
    output = _output_layers(model) if config.target_modules == ALL_LINEAR else []

    def wanted(path: str, module: nn.Module, patterns: list[str] | str) -> bool:
        if matches(path, exclude) or any(path == s or path.startswith(f"{s}.") for s in saved_paths):
            return False  # as in PEFT: what is saved in full is not adapted as well
        if patterns == ALL_LINEAR:
            return _is_linear(module) and not any(module is layer for layer in output)
        return matches(path, patterns)

    patterns = config.target_modules
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        one = pattern if isinstance(patterns, str) else [pattern]
        if not any(wanted(path, module, one) for path, module in modules):
            raise GPartError(
                f"target_modules={patterns!r}: {pattern!r} matches no module that is left by"
                f" exclude_modules={exclude!r} and modules_to_save={config.modules_to_save!r}; there are {_names(model)}"
            )
    found = [(path, module) for path, module in modules if wanted(path, module, patterns)]
    for key in config.slices or {}:
        if not any(matches(path, [key]) for path, _ in found):
            raise GPartError(f"slices: {key!r} matches none of the adapted layers {sorted({p for p, _ in found})[:20]}")
    return found


def _layout(
    path: str, module: nn.Module, config: GPartConfig
) -> Iterator[tuple[list[str], int, list[tuple[int, int | None]]]]:
    """For each weight of a layer: its attribute and its bias's, the output dimension, and the blocks to adapt."""
    kind = type(module).__name__
    if is_adapted(module):
        raise GPartError(f"{path or 'the model'} ({kind}) is parametrized already: it carries another adapter")
    if parametrize.is_parametrized(module):
        found = list(module.parametrizations)  # type: ignore[arg-type]  # a ModuleDict
        raise GPartError(
            f"{path or 'the model'} ({kind}) is parametrized already: its {found} are computed, as by weight_norm, and"
            " are no parameters; adapt it before, or remove_parametrizations first"
        )
    if isinstance(module, nn.MultiheadAttention):
        names = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
        weights = [name for name in names if getattr(module, name) is not None]
        bias = "in_proj_bias"
    else:
        weights, bias = ["weight"], "bias"
    for weight in weights:
        value = module._parameters.get(weight)
        if isinstance(value, UninitializedParameter):
            raise GPartError(
                f"{path} ({kind}) has no shape yet: run the lazy layer once before the adapter is attached"
            )
        if value is None or not value.is_floating_point() or value.dim() == 0:
            held = "nothing" if value is None else f"a {value.dtype} of shape {tuple(value.shape)}"
            raise GPartError(
                f"target_modules={config.target_modules!r} matches {path or 'the model'} ({kind}), which cannot be"
                f" adapted: a floating-point parameter {weight!r} is needed, and it holds {held}"
            )
    if isinstance(module, nn.Embedding):
        if module.sparse:
            raise GPartError(f"{path} is an Embedding with sparse=True, whose gradient has no dense form to reduce")
        if module.max_norm is not None:
            raise GPartError(f"{path} is an Embedding with max_norm={module.max_norm}, which rewrites its weight")
    keys = [key for key in config.slices or {} if matches(path, [key])]
    if len(keys) > 1:
        raise GPartError(f"slices: {keys[0]!r} and {keys[1]!r} both match {path}")
    cuts: list[tuple[int, int | None]] = [(0, None)]
    if keys and config.slices:
        cuts = [(start, stop) for start, stop in config.slices[keys[0]]]
    dim = 1 if _is_conv1d(module) else 0
    with_bias = config.bias == "all" and isinstance(module._parameters.get(bias), Tensor)
    for weight in weights:
        attributes = [weight, bias] if with_bias and weight == weights[-1] else [weight]
        yield attributes, dim, cuts


def _is_conv1d(module: nn.Module) -> bool:
    """Transformers' Conv1D, a linear layer with a transposed weight, known without importing transformers."""
    return hasattr(module, "nf") and any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def _output_layers(model: nn.Module) -> list[nn.Module]:
    """The output layer that "all-linear" leaves out: PEFT's rule, without importing transformers."""
    if not hasattr(model, "get_output_embeddings"):
        return []
    output = model.get_output_embeddings()  # type: ignore[operator]  # Transformers' method, found by its name
    if isinstance(output, nn.Module):
        return [output]
    head = next((getattr(model, name) for name in _HEADS if hasattr(model, name)), None)
    return list(head.modules()) if isinstance(head, nn.Module) else []


def _names(model: nn.Module, most: int = 40) -> list[str]:
    """The last parts of the names of the modules that hold parameters themselves: what a pattern could match."""
    paths = [path for path, module in named_modules(model) if path and list(module.parameters(recurse=False))]
    names = list(dict.fromkeys(re.sub(r"^.*\.(?=[^.]*[A-Za-z])", "", path) for path in paths))
    return names if len(names) <= most else [*names[:most], f"and {len(names) - most} more"]
