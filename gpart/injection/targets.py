"""From a config and a model to the plan: which entries of which weights, in which order, and what is frozen.

Invariant: making a plan changes nothing, and a plan that exists can be carried out. The adapted weights are joined in
the order of ``model.named_modules()``, each row-major, a bias right after its weight; a weight that several modules
share stands once, at its first owner, and names all of them. A layer's parameters that ``target_parameters`` names come
after those that ``target_modules`` does. An embedding's row of ``padding_idx``, which torch never trains, is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from gpart.config import GPartConfig
from gpart.errors import GPartError
from gpart.injection.forgotten import randomly_initialised
from gpart.injection.layers import (
    Cut,
    attributes_of,
    check_layer,
    check_parameter,
    check_shapes,
    output_dim,
    padding_row,
)
from gpart.injection.matching import matches, saved_parameters, target_layers, target_parameters
from gpart.injection.names import get_submodule, named_modules, named_parameters, split_name


@dataclass(frozen=True)
class AdaptedWeight:
    """One adapted parameter and where its blocks stand in the flat vector of length D.

    Attributes:
        name: as in ``model.named_parameters()`` before attach.
        shape: the parameter's shape.
        dim: the dimension along which it is cut into blocks (:func:`gpart.injection.layers.output_dim`).
        blocks: (start, stop, offset): indices start to stop - 1 along ``dim`` stand at ``offset`` of the vector.
        owners: every (module path, attribute) that holds this same parameter.
        left_out: the row that is no part of the vector, an embedding's ``padding_idx``.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    blocks: tuple[tuple[int, int, int], ...]
    owners: tuple[tuple[str, str], ...]
    left_out: int | None = None


@dataclass(frozen=True)
class Plan:
    """What attach will do: the adapted weights, their total size D, and the saved and the frozen parameters' names."""

    weights: tuple[AdaptedWeight, ...]
    size: int
    saved: tuple[str, ...]
    frozen: tuple[str, ...]
    padding_rows: bool = False
    """Whether there are rows of ``padding_idx`` in the vector, as in files of format 1."""

    @property
    def places(self) -> list[tuple[str, str]]:
        """Every (module path, attribute) that holds an adapted weight."""
        return [place for weight in self.weights for place in weight.owners]

    def described(self) -> list[list[Any]]:
        """The adapted weights as they stand in files: name and shape, and the row that is left out where there is one."""
        return [
            [weight.name, list(weight.shape), *([] if weight.left_out is None else [weight.left_out])]
            for weight in self.weights
        ]


def plan(model: nn.Module, config: GPartConfig, padding_rows: bool = False, beside: Collection[str] = ()) -> Plan:
    """The plan for this model.

    Args:
        model: is not changed.
        config: what is to be adapted.
        padding_rows: True keeps an embedding's row of ``padding_idx`` in the vector, as before format 2 of the files.
        beside: names of parameters that the model's other adapters save. Those of them that Transformers has just
            initialised at random, a new head, are no part of the base: this adapter neither freezes them nor is
            recognised by them.

    Raises:
        GPartError: if a pattern matches nothing, a matched layer cannot be adapted, a lazy layer has not been run, or d
            is larger than D; with what was asked and what there was to match.
    """
    check_shapes(model)
    saved_paths, saved = saved_parameters(model, config.modules_to_save)
    owners: dict[int, list[tuple[str, str]]] = {}
    for path, module in named_modules(model):
        for attribute, value in module._parameters.items():
            if value is not None:
                owners.setdefault(id(value), []).append((path, attribute))
    every = named_parameters(model, remove_duplicate=False)
    first_name = {id(value): name for name, value in reversed(every.items())}
    saved_ids = {id(every[name]) for name in saved}

    def left_out(parameter: int) -> int | None:
        return None if padding_rows else _padding(model, owners[parameter])

    weights: list[AdaptedWeight] = []
    claimed: dict[int, tuple[str, str]] = {}  # whoever has a parameter first
    offset = 0
    for path, module, groups in _entries(model, config, saved_paths):
        blocks_of: dict[str, list[tuple[int, int, int]]] = {}
        for attributes, cuts in groups:
            for start, stop in cuts:
                for attribute in attributes:
                    value = module._parameters[attribute]
                    if value is None or claimed.setdefault(id(value), (path, attribute)) != (path, attribute):
                        continue
                    name = first_name[id(value)]
                    if id(value) in saved_ids:
                        raise GPartError(f"{name} is tied to a parameter of modules_to_save={config.modules_to_save}")
                    along = output_dim(module, value)
                    length = value.shape[along]
                    end = length if stop is None else stop
                    if end > length:
                        raise GPartError(f"slices reach to {end}, but {name} has {length} along dimension {along}")
                    for first, last in without(start, end, left_out(id(value))):
                        blocks_of.setdefault(attribute, []).append((first, last, offset))
                        offset += (last - first) * (value.numel() // max(length, 1))
        for attribute, blocks in blocks_of.items():
            value = getattr(module, attribute)
            name, its = first_name[id(value)], tuple(owners[id(value)])
            for owner, _ in its:
                check_layer(owner, get_submodule(model, owner))
            dim = output_dim(module, value)
            weights.append(AdaptedWeight(name, tuple(value.shape), dim, tuple(blocks), its, left_out(id(value))))
    if config.d > offset:
        asked = f"target_modules={config.target_modules!r}"
        if config.target_parameters is not None:
            asked = f"target_parameters={config.target_parameters!r} and {asked}"
        raise GPartError(f"d={config.d} is more than the {offset} weights that {asked} adapts")
    saved_set = {name for name, value in named_parameters(model).items() if id(value) in saved_ids}
    frozen = tuple(name for name in named_parameters(model) if name not in saved_set)
    if beside:
        new_heads = {*randomly_initialised(model, frozen)} & {*beside}
        frozen = tuple(name for name in frozen if name not in new_heads)
    rows = padding_rows and any(_padding(model, weight.owners) is not None for weight in weights)
    return Plan(tuple(weights), offset, tuple(sorted(saved_set)), frozen, rows)


def _entries(
    model: nn.Module, config: GPartConfig, saved_paths: list[str]
) -> Iterator[tuple[str, nn.Module, list[tuple[list[str], list[Cut]]]]]:
    """For each layer in order: its adapted weights, each with its bias where that is adapted, and how they are cut."""
    modules = [] if config.target_modules is None else target_layers(model, config, config.target_modules, saved_paths)
    parameters = {} if config.target_parameters is None else target_parameters(model, config, saved_paths)
    matched = {*modules, *(name for names in parameters.values() for name in names)}
    for key in config.slices or {}:
        if not any(matches(name, [key]) for name in matched):
            raise GPartError(f"slices: {key!r} matches none of the adapted layers {sorted(matched)[:20]}")
    for path, module in named_modules(model):
        groups = []
        if path in modules:
            cuts = _cuts(path, config)
            asked = f"target_modules={config.target_modules!r}"
            groups += [(names, cuts) for names in attributes_of(path, module, config.bias == "all", asked)]
        for name in parameters.get(path, []):
            attribute = split_name(name)[1]
            if any(attribute in names for names, _ in groups):
                continue
            check_layer(path, module)
            check_parameter(path, module, attribute, f"target_parameters={config.target_parameters!r}")
            groups.append(([attribute], _cuts(name, config)))
        if groups:
            yield path, module, groups


def _cuts(name: str, config: GPartConfig) -> list[Cut]:
    keys = [key for key in config.slices or {} if matches(name, [key])]
    if len(keys) > 1:
        raise GPartError(f"slices: {keys[0]!r} and {keys[1]!r} both match {name}")
    return [(start, stop) for start, stop in config.slices[keys[0]]] if keys and config.slices else [(0, None)]


def without(start: int, stop: int, row: int | None) -> list[tuple[int, int]]:
    """A stretch of rows without one of them."""
    if row is None or not start <= row < stop:
        return [(start, stop)]
    return [(first, last) for first, last in ((start, row), (row + 1, stop)) if first < last]


def _padding(model: nn.Module, owners: Iterable[tuple[str, str]]) -> int | None:
    """The row that no owner of a weight trains where one of them is an embedding with a padding row."""
    rows = (padding_row(get_submodule(model, path), attribute) for path, attribute in owners)
    return next((row for row in rows if row is not None), None)
