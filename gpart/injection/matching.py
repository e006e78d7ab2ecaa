"""What the patterns of a config mean in a model: layers, parameters, modules that are saved in full.

Invariant: every pattern matches something, or the error says what there was to match. Names and endings follow PEFT's
rules.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import nn

from gpart.config import GPartConfig
from gpart.errors import GPartError
from gpart.heads import HEAD, NAMES, head_modules
from gpart.injection.attention import QUERY_VALUE, query_value
from gpart.injection.layers import is_linear
from gpart.injection.names import get_submodule, named_modules, named_parameters, unwrapped
from gpart.injection.patterns import fullmatch

ALL_LINEAR = "all-linear"


def matches(name: str, patterns: list[str] | str | None) -> bool:
    """Whether a module's name is meant by ``patterns``: a regular expression for the whole name, or endings.

    Example:
        >>> matches("encoder.layer.0.query", ["query", "value"]), matches("encoder.subquery", ["query"])
        (True, False)
    """
    if patterns is None:
        return False
    if isinstance(patterns, str):
        return fullmatch(patterns, name)
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def with_own_names(config: GPartConfig, model: nn.Module) -> GPartConfig:
    """The config with the model's own names in place of ``modules_to_save="head"`` and ``target_modules="query-value"``.

    Raises:
        GPartError: if the model does not tell which of its modules these are.
    """
    if config.modules_to_save == HEAD:
        config = replace(config, modules_to_save=_head(model))
    if config.target_modules == QUERY_VALUE:
        names, slices = query_value(unwrapped(model))
        config = replace(config, target_modules=names, slices={**slices, **(config.slices or {})} or None)
    return config


def saved_parameters(model: nn.Module, patterns: list[str] | str | None) -> tuple[list[str], list[str]]:
    """The paths of the modules that ``modules_to_save`` names, and the names of all their parameters.

    Args:
        model: the module.
        patterns: names or name endings, or ``"head"``.

    Raises:
        GPartError: if a pattern matches no module, or only modules without parameters.
    """
    if isinstance(patterns, str):
        patterns = _head(model)
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


def is_excluded(path: str, config: GPartConfig, saved_paths: list[str]) -> bool:
    """Whether a module is out by ``exclude_modules``, or lies in one that is saved in full, which PEFT adapts not either."""
    return matches(path, config.exclude_modules) or any(path == s or path.startswith(f"{s}.") for s in saved_paths)


def target_layers(
    model: nn.Module, config: GPartConfig, patterns: list[str] | str, saved_paths: list[str]
) -> dict[str, nn.Module]:
    """The modules that ``target_modules`` means, by their paths.

    Raises:
        GPartError: if a pattern matches none.
    """
    modules = named_modules(model)
    exclude = config.exclude_modules
    for pattern in [exclude] if isinstance(exclude, str) else exclude or []:
        one = pattern if isinstance(exclude, str) else [pattern]
        if not any(matches(path, one) for path, _ in modules):
            raise GPartError(f"exclude_modules={exclude!r}: {pattern!r} matches no module; there are {_names(model)}")
    output = output_layers(model) if patterns == ALL_LINEAR else []

    def wanted(path: str, module: nn.Module, patterns: list[str] | str) -> bool:
        if is_excluded(path, config, saved_paths):
            return False
        if patterns == ALL_LINEAR:
            return is_linear(module) and not any(module is layer for layer in output)
        return matches(path, patterns)

    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        one = pattern if isinstance(patterns, str) else [pattern]
        if not any(wanted(path, module, one) for path, module in modules):
            raise GPartError(
                f"target_modules={patterns!r}: {pattern!r} matches no module{_meant_parameter(model, one)} that is left by"
                f" exclude_modules={exclude!r} and modules_to_save={config.modules_to_save!r}; there are {_names(model)}"
            )
    return {path: module for path, module in modules if wanted(path, module, patterns)}


def _meant_parameter(model: nn.Module, patterns: list[str] | str) -> str:
    """What to say where a pattern that matches no module matches a parameter."""
    found = next((name for name in named_parameters(model) if matches(name, patterns)), None)
    return "" if found is None else f" (but the parameter {found}: that goes into target_parameters)"


def target_parameters(model: nn.Module, config: GPartConfig, saved_paths: list[str]) -> dict[str, list[str]]:
    """The names of the parameters that ``target_parameters`` means, by the paths of the modules that hold them.

    Raises:
        GPartError: if a pattern matches none.
    """
    patterns = config.target_parameters or []
    own = [
        (path, f"{path}.{attribute}" if path else attribute)
        for path, module in named_modules(model)
        for attribute, value in module._parameters.items()
        if value is not None and not is_excluded(path, config, saved_paths)
    ]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        one = pattern if isinstance(patterns, str) else [pattern]
        if not any(matches(name, one) for _, name in own):
            endings = list(dict.fromkeys(".".join(name.split(".")[-2:]) for _, name in own))
            raise GPartError(
                f"target_parameters={patterns!r}: {pattern!r} matches no parameter that is left by"
                f" exclude_modules={config.exclude_modules!r} and modules_to_save={config.modules_to_save!r}; there are"
                f" {_at_most(endings)}"
            )
    found: dict[str, list[str]] = {}
    for path, name in own:
        if matches(name, patterns):
            found.setdefault(path, []).append(name)
    return found


def output_layers(model: nn.Module) -> list[nn.Module]:
    """The output layer that "all-linear" leaves out: PEFT's rule, without importing transformers."""
    if not hasattr(model, "get_output_embeddings"):
        return []
    output = model.get_output_embeddings()  # type: ignore[operator]  # Transformers' method, found by its name
    if isinstance(output, nn.Module):
        return [output]
    head = next((getattr(model, name) for name in NAMES if hasattr(model, name)), None)
    return list(head.modules()) if isinstance(head, nn.Module) else []


def _head(model: nn.Module) -> list[str]:
    try:
        return head_modules(unwrapped(model))
    except GPartError as error:
        raise GPartError(f"modules_to_save={HEAD!r}: {error}") from None


def _names(model: nn.Module) -> list[str]:
    """The last parts of the names of the modules that hold parameters themselves: what a pattern could match."""
    paths = [path for path, module in named_modules(model) if path and list(module.parameters(recurse=False))]
    names = list(dict.fromkeys(re.sub(r"^.*\.(?=[^.]*[A-Za-z])", "", path) for path in paths))
    return _at_most(names)


def _at_most(names: list[str], most: int = 40) -> list[str]:
    return names if len(names) <= most else [*names[:most], f"and {len(names) - most} more"]
