"""What a refused base is beside the one that an adapter was trained on: where in it the adapter's weights are, or what differs.

Invariant: only names and shapes are compared, in what the adapter's file lists; no value is read and nothing is changed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from gpart.injection.fingerprint import Sample, parts, shortened, shortened_length
from gpart.injection.names import named_parameters

Shapes = dict[str, tuple[int, ...]]


def hint(model: nn.Module, weights: Sequence[Any]) -> str:
    """Where the adapted weights of a file are in a model, or the first that is not there; empty if all are in their places.

    Args:
        model: what the adapter was to be loaded onto.
        weights: the manifest's list, of a name and a shape each.

    Example:
        >>> inner = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> hint(nn.ModuleDict({"model": inner}), [["0.weight", [3, 2]]])
        "; its submodule 'model', a Sequential, has these weights: load onto that"
        >>> hint(inner, [["0.weight", [3, 2]]])
        ''
    """
    try:
        asked = {str(item[0]): tuple(map(int, item[1])) for item in weights}
    except (TypeError, ValueError, IndexError):
        return ""  # a damaged list is told of by who reads it
    mine, kind = _shapes(model), type(model).__name__
    if not asked or _has(mine, asked):
        return ""
    if near := inside(model, asked):
        return f"; {near}: load onto that"
    if near := outside(model, asked):
        return f"; {near}. Load onto the whole, such as a class with a head (AutoModelFor...) in place of AutoModel"
    name = next(name for name in asked if mine.get(name) != asked[name])
    here = f"has shape {list(mine[name])}" if name in mine else "is not there"
    close = "" if name in mine else "".join(f", close is {each}" for each in difflib.get_close_matches(name, mine, n=1))
    return f"; the first difference: {name} has shape {list(asked[name])} in the file, in this {kind} it {here}{close}"


def inside(model: nn.Module, asked: Shapes) -> str:
    """Which submodule has these weights; empty if none has, or the model itself.

    >>> inside(nn.ModuleDict({"model": nn.Sequential(nn.Linear(2, 3))}), {"0.weight": (3, 2)})
    "its submodule 'model', a Sequential, has these weights"
    """
    mine = _shapes(model)
    for path, module in model.named_modules() if asked and not _has(mine, asked) else ():
        if path and _has(mine, {f"{path}.{name}": shape for name, shape in asked.items()}):
            return f"its submodule {path!r}, a {type(module).__name__}, has these weights"
    return ""


def outside(model: nn.Module, asked: Shapes) -> str:
    """Of what a model is a part where these weights are, as an encoder is one of a class with a head; else empty.

    >>> outside(nn.Sequential(nn.Linear(2, 3)), {"model.0.weight": (3, 2)})
    "this Sequential has these weights as 0.weight: it is what the adapter's base has as 'model'"
    """
    mine, above = _shapes(model), ""
    for part in next(iter(asked), "").split(".")[:-1]:
        above = f"{above}{part}."
        if all(name.startswith(above) for name in asked):
            within = {name.removeprefix(above): shape for name, shape in asked.items()}
            if _has(mine, within):
                return (
                    f"this {type(model).__name__} has these weights as {next(iter(within))}: it is what the adapter's base"
                    f" has as {above[:-1]!r}"
                )
    return ""


def another_head(frozen: Mapping[str, Any | Sample], expected: str) -> str:
    """Says which frozen parameters are only in a file's base or only here, where the rest is the same; else empty.

    Args:
        frozen: the frozen parameters by name.
        expected: the manifest's ``parts``: two letters a parameter, where there are 400 at most.
    """
    names = sorted(frozen)
    if not expected or len(expected) == shortened_length(len(names)) or max(len(expected) // 2, len(names)) > 400:
        return ""
    mine, its = ([text[at : at + 2] for at in range(0, len(text), 2)] for text in (shortened(parts(frozen)), expected))
    blocks = difflib.SequenceMatcher(a=its, b=mine, autojunk=False).get_matching_blocks()
    shared = {at for block in blocks for at in range(block.b, block.b + block.size)}
    if 2 * len(shared) < len(its):
        return ""
    only = [name for at, name in enumerate(names) if at not in shared]
    return (
        f"; {len(shared)} of the {len(its)} frozen parameters that it was trained on are here as they were, so that this is"
        f" the same encoder in another class: {len(its) - len(shared)} are only there, here besides"
        f" {', '.join(only[:3]) or 'none'}{f' and {len(only) - 3} more' if len(only) > 3 else ''}. Load the class that it"
        " was trained on"
    )


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in named_parameters(model, remove_duplicate=False).items()}


def _has(mine: Shapes, asked: Shapes) -> bool:
    return all(mine.get(name) == shape for name, shape in asked.items())
