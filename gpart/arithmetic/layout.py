"""Where each adapted weight stands in the vector of length D, from a manifest alone: no model is needed.

Invariant: a :class:`Layout` that exists adds up, its blocks are D positions without a gap, in the order of
:mod:`gpart.injection.targets`. Two adapters with equal layouts have the same P.

One thing is not in a manifest: along which dimension a weight with slices is cut, the first, or the second of Transformers'
Conv1D. The one that adds up to D is taken. Where both do (square weights), norms and everything on one layout hold all the
same, and what would need to know is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpart.config import GPartConfig
from gpart.errors import GPartError
from gpart.injection.matching import matches
from gpart.injection.names import split_name
from gpart.injection.targets import AdaptedWeight, without
from gpart.serialization.manifest import Manifest

_BIASES = ("bias", "in_proj_bias")
"""What ``bias="all"`` adapts, right after each slice of the weight before it."""

Rows = list[tuple[int, int]]
_Listed = tuple[str, tuple[int, ...], int | None]
"""A weight in a manifest: name, shape, the row that is left out."""


@dataclass(frozen=True)
class Layout:
    """Everything that decides P: equal layouts have the same P, and theta means the same in them."""

    scheme: str
    """The name of the function from positions to groups."""

    size: int
    """D."""

    d: int

    seed: int

    isometric: bool

    weights: tuple[AdaptedWeight, ...]
    """The adapted weights in order, with their blocks; owners are not known."""

    sure: bool = field(default=True, compare=False)
    """Whether the dimension of the slices is the only one that adds up."""

    def differences(self, other: Layout) -> list[str]:
        """What differs, a line each, with both values; empty where P is the same."""
        mine, its = vars(self), vars(other)
        lines = [
            f"{key} is {mine[key]} and {its[key]}"
            for key in ("scheme", "d", "seed", "isometric")
            if mine[key] != its[key]
        ]
        if self.weights != other.weights:
            lines += _differing_weights(self.weights, other.weights)
        return lines if self.size == other.size else [*lines, f"D is {self.size} and {other.size}"]


def layout_of(manifest: Manifest, source: str = "the adapter") -> Layout:
    """The layout of the adapter that a manifest describes.

    Args:
        manifest: as read from a file.
        source: its name in messages.

    Raises:
        GPartError: if its list of weights is no such list, or does not add up to D.

    Example:
        >>> config = GPartConfig(d=3, target_modules=["qkv"], slices={"qkv": [[0, 2], [4, 6]]})
        >>> manifest = Manifest("default", config, 16, [["qkv.weight", [6, 4]]], base="0" * 64)
        >>> layout_of(manifest).weights[0].blocks  # start, stop, offset
        ((0, 2, 0), (4, 6, 8))
    """
    config, listed = manifest.config, _checked(manifest.weights, source)
    tried = [_placed(config, listed, dim) for dim in (0, 1)]
    fitting = [weights for weights, size in tried if size == manifest.size]
    if not fitting:
        cut = f"; with slices {config.slices} it is {tried[0][1] or tried[1][1]}" if config.slices else ""
        numbers = sum(math.prod(shape) for _, shape, _ in listed)
        raise GPartError(f"{source} has D = {manifest.size}, but its {len(listed)} weights have {numbers} numbers{cut}")
    if not config.d <= manifest.size:
        raise GPartError(f"{source} has d = {config.d}, more than its D = {manifest.size}")
    sure = len(fitting) == 1 or fitting[0] == fitting[1]  # without slices both are one
    return Layout(manifest.scheme, manifest.size, config.d, config.seed, config.isometric, fitting[0], sure)


def same_layout(first: Manifest, second: Manifest) -> bool:
    """Whether two adapters have the same P: D, d, seed, scheme, isometric, the weights, their order and their slices.

    Raises:
        GPartError: if the list of weights of one does not add up.
    """
    return layout_of(first) == layout_of(second)


def _checked(weights: Any, source: str) -> list[_Listed]:
    """A manifest's list of weights, as what it must be."""

    def whole(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    listed = []
    for item in weights if isinstance(weights, list) else [weights]:
        good = isinstance(item, Sequence) and len(item) in (2, 3) and isinstance(item[0], str)
        good = good and isinstance(item[1], Sequence) and len(item[1]) > 0 and all(map(whole, item[1]))
        if not good or (len(item) == 3 and not (whole(item[2]) and item[2] < item[1][0])):
            raise GPartError(f"{source} has no list of adapted weights: {item!r} is none")
        listed.append((item[0], tuple(item[1]), item[2] if len(item) == 3 else None))
    if len({name for name, _, _ in listed}) < len(listed):
        raise GPartError(f"{source} lists a weight twice: {sorted(name for name, _, _ in listed)[:20]}")
    return listed


def _placed(config: GPartConfig, listed: list[_Listed], dim: int) -> tuple[tuple[AdaptedWeight, ...], int]:
    """The weights one after another, those with slices and two or more dimensions cut along ``dim``; and D.

    Where a slice does not fit into its weight, D is 0.
    """
    placed: list[AdaptedWeight] = []
    offset = 0
    for group in _joined(config, listed):
        blocks: dict[str, list[tuple[int, int, int]]] = {name: [] for name, *_ in group}
        alongs = {name: dim if cuts and len(shape) > 1 else 0 for name, shape, _, cuts in group}
        cuts_of = {name: cuts or [(0, shape[alongs[name]])] for name, shape, _, cuts in group}
        for number in range(max(map(len, cuts_of.values()))):  # a bias's slice follows the weight's
            for name, shape, row, _ in group:
                start, stop = cuts_of[name][number]
                length = shape[alongs[name]]
                if stop > length:
                    return (), 0
                for first, last in without(start, stop, row):
                    blocks[name].append((first, last, offset))
                    offset += (last - first) * (math.prod(shape) // max(length, 1))
        placed += [
            AdaptedWeight(name, shape, alongs[name], tuple(blocks[name]), (), row) for name, shape, row, _ in group
        ]
    return tuple(placed), offset


def _joined(
    config: GPartConfig, listed: list[_Listed]
) -> list[list[tuple[str, tuple[int, ...], int | None, Rows | None]]]:
    """The weights, each with its slices; a bias beside the weight before it, where the layer's slices cut both."""
    groups: list[list[tuple[str, tuple[int, ...], int | None, Rows | None]]] = []
    before = None
    for name, shape, row in listed:
        path, attribute = split_name(name)
        of_layer = _cuts(config, path)
        one = (name, shape, row, _cuts(config, name) if of_layer is None else of_layer)
        if config.bias == "all" and attribute in _BIASES and path == before and of_layer is not None:
            groups[-1].append(one)
        else:
            groups.append([one])
        before = path
    return groups


def _cuts(config: GPartConfig, name: str) -> Rows | None:
    found = (pairs for key, pairs in (config.slices or {}).items() if matches(name, [key]))
    pairs = next(found, None)
    return None if pairs is None else [(start, stop) for start, stop in pairs]


def by_name(weights: Iterable[AdaptedWeight]) -> Mapping[str, AdaptedWeight]:
    """Weights by their names."""
    return {weight.name: weight for weight in weights}


def _differing_weights(mine: tuple[AdaptedWeight, ...], its: tuple[AdaptedWeight, ...]) -> list[str]:
    first, second = by_name(mine), by_name(its)
    lines = []
    for which, names in (
        ("the first", [name for name in first if name not in second]),
        ("the second", [name for name in second if name not in first]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"only {which} adapts {', '.join(names[:3])}{more}")
    shared = [name for name in first if name in second]
    for name in shared:
        a, b = first[name], second[name]
        if a.shape != b.shape:
            lines.append(f"{name} has shape {list(a.shape)} and {list(b.shape)}")
        elif a.left_out != b.left_out:
            lines.append(f"{name} leaves out row {a.left_out} and row {b.left_out}")
        elif (cut := _rows(a)) != (other := _rows(b)):
            lines.append(f"{name} is adapted in {cut} and {other}")
    if not lines and (order := [name for name in second if name in first]) != shared:
        at = next(i for i, (a, b) in enumerate(zip(shared, order, strict=True)) if a != b)
        lines.append(f"weight number {at} is {shared[at]} and {order[at]}")
    return lines[:6]


def _rows(weight: AdaptedWeight) -> Rows:
    return [(start, stop) for start, stop, _ in weight.blocks]
