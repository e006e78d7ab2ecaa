"""Norms, distances and angles of updates, P·theta, without a model and without making P·theta whole.

Invariant: every number is the one of the weight updates themselves, added in float64. On one isometric layout it is
theta's own, since PᵀP = I:

    ‖P·a - P·b‖ = ‖a - b‖,    <P·a, P·b> = <a, b>

and in general, with f_j = 1/sqrt(n_j) (1 where the layout is not isometric),

    <P·a, P·b> = sum_j n_j f_j² a_j b_j                          on one layout
    <P·a, P·b> = sum_i f_g(i) a_g(i) · f'_g'(i) b_g'(i)           over the positions i of the base, on two

The second is computed stretch by stretch, as is everything by weight. A weight that only one of two adapts counts as 0 in
the other. A dense map has no groups: its P·theta is made as a whole after all, and its products are added up over it.

Source: paper, proposition 1 (isometry).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpart.arithmetic.layout import Layout, by_name
from gpart.arithmetic.positions import map_of, places
from gpart.arithmetic.stored import AdapterLike, Stored, as_stored, check_same_base
from gpart.errors import GPartError
from gpart.injection.targets import AdaptedWeight
from gpart.partition import Groups
from gpart.projections.fastfood import Fastfood
from gpart.projections.registry import groups_of as found_by

CHUNK = 1 << 20
"""Positions that are in memory at once."""


@dataclass(frozen=True)
class Moments:
    """The squares and the product of two updates, or of their parts in one weight."""

    first: float
    """‖a‖²"""
    second: float
    """‖b‖²"""
    product: float
    """<a, b>"""
    difference: float
    """‖a - b‖², of the differences themselves: nothing is lost where a and b are close."""

    @property
    def distance(self) -> float:
        """‖a - b‖."""
        return math.sqrt(self.difference)

    @property
    def cosine(self) -> float:
        """<a, b> / (‖a‖·‖b‖), -1 to 1; 0 where an update is 0, which has no direction."""
        both = math.sqrt(self.first) * math.sqrt(self.second)
        return max(-1.0, min(1.0, self.product / both)) if both else 0.0


@dataclass(frozen=True)
class Comparison:
    """Two adapters side by side: in all, and by weight over all weights that one of both adapts."""

    whole: Moments
    by_weight: dict[str, Moments]


class Update:
    """P·theta, to be read stretch by stretch, float64; of several thetas of one layout at once.

    Of a dense map it is there as a whole.

    Args:
        layout: decides P.
        thetas: each of shape (d,).
    """

    def __init__(self, layout: Layout, *thetas: Tensor) -> None:
        made = map_of(layout)
        self.groups: Groups = found_by(made)
        self.weights = by_name(layout.weights)
        if isinstance(made, Fastfood):
            looked_up = [_dense(made, theta) for theta in thetas]
        else:
            factor = factors(layout, made)
            looked_up = [theta.detach().cpu().double() * factor for theta in thetas]
        self._scaled = torch.stack(looked_up, dim=1)

    def read(self, name: str, first: int, last: int) -> Tensor:
        """The updates of a weight's row-major entries ``first`` to ``last - 1``; 0 where it is not adapted.

        Returns:
            Shape (thetas, last - first).
        """
        out = self._scaled.new_zeros(last - first, self._scaled.shape[1])
        if name in self.weights:
            for place, begin, end in places(self.weights[name], first, last):
                out[place] = self._scaled.index_select(0, self.groups.groups(begin, end))
        return out.T


def factors(layout: Layout, groups: Groups) -> Tensor:
    """f_j, what P's column j holds: 1/sqrt(n_j), or 1 where the layout is not isometric; shape (d,), float64."""
    if not layout.isometric:
        return torch.ones(layout.d, dtype=torch.float64)
    return groups.sizes().clamp(min=1).double().rsqrt()


def norm(adapter: AdapterLike) -> float:
    """‖P·theta‖, the length of the update; ‖theta‖ where the layout is isometric.

    Args:
        adapter: stored or live.

    Example:
        >>> from gpart import GPartConfig, attach
        >>> adapter = attach(torch.nn.Linear(4, 4), GPartConfig(d=2, target_modules=".*"))
        >>> with torch.no_grad():
        ...     _ = adapter.theta.copy_(torch.tensor([3.0, 4.0]))
        >>> norm(adapter)
        5.0
    """
    stored = as_stored(adapter)
    return math.sqrt(_same(stored, stored).first)


def norm_by_weight(adapter: AdapterLike) -> dict[str, float]:
    """The update's length in each adapted weight, by name; their squares add up to :func:`norm`'s."""
    stored = as_stored(adapter)
    update = Update(stored.layout, stored.theta)
    found = {}
    for weight in stored.layout.weights:
        found[weight.name] = math.sqrt(
            sum(float(update.read(weight.name, *stretch).square().sum()) for stretch in stretches(weight))
        )
    return found


def distance(first: AdapterLike, second: AdapterLike, check_base: bool = True) -> float:
    """‖P·a - P'·b‖, how far apart two fine-tuned models are in their adapted weights.

    Args:
        first: stored or live.
        second: the same; of any layout on the same base.
        check_base: False compares also where the fingerprints of the bases differ.

    Raises:
        GPartError: if the bases differ, or a weight has two shapes.
    """
    return _whole(first, second, check_base).distance


def cosine(first: AdapterLike, second: AdapterLike, check_base: bool = True) -> float:
    """The cosine of the angle between two updates; arguments and errors as for :func:`distance`."""
    return _whole(first, second, check_base).cosine


def distance_by_weight(first: AdapterLike, second: AdapterLike, check_base: bool = True) -> dict[str, float]:
    """:func:`distance` in each weight that one of both adapts, by name; the squares add up to the whole's."""
    return {name: moments.distance for name, moments in compare(first, second, check_base).by_weight.items()}


def cosine_by_weight(first: AdapterLike, second: AdapterLike, check_base: bool = True) -> dict[str, float]:
    """:func:`cosine` in each weight that one of both adapts, by name."""
    return {name: moments.cosine for name, moments in compare(first, second, check_base).by_weight.items()}


def compare(first: AdapterLike, second: AdapterLike, check_base: bool = True) -> Comparison:
    """All of the above in one pass; arguments and errors as for :func:`distance`."""
    one, other = _pair(first, second, check_base)
    theta, its = one.theta.double(), other.theta.double()
    same = one.layout == other.layout
    # On one layout the difference is theta's, exact in float64; after the scaling, each is rounded before.
    updates = (
        [Update(one.layout, theta, its, theta - its)]
        if same
        else [Update(one.layout, theta), Update(other.layout, its)]
    )
    found = {}
    for weight in union(one.layout, other.layout):
        sums = [0.0] * 4
        for stretch in stretches(weight):
            a, b, *apart = (row for update in updates for row in update.read(weight.name, *stretch))
            c = apart[0] if apart else a - b
            for place, value in enumerate((a.dot(a), b.dot(b), a.dot(b), c.dot(c))):
                sums[place] += float(value)
        found[weight.name] = Moments(*sums)
    return Comparison(_same(one, other) if same else _sum(found), found)


def union(first: Layout, second: Layout) -> Iterator[AdaptedWeight]:
    """The weights of both layouts, each once: the first's in order, then those of the second alone.

    Raises:
        GPartError: if a weight has another shape in the other, or it is not known which of its entries are adapted.
    """
    its = by_name(second.weights)
    for weight in first.weights:
        other = its.get(weight.name)
        if other is None:
            continue
        if weight.shape != other.shape:
            raise GPartError(
                f"{weight.name} has shape {list(weight.shape)} and {list(other.shape)}: there are two bases"
            )
        cut, its_cut = ([block[:2] for block in each.blocks] for each in (weight, other))
        if cut != its_cut and not (first.sure and second.sure):
            raise GPartError(
                f"{weight.name} has slices {cut} and {its_cut}, and the files do not say along which dimension: its shape"
                f" {list(weight.shape)} allows both"
            )
    mine = by_name(first.weights)
    yield from first.weights
    yield from (weight for weight in second.weights if weight.name not in mine)


def stretches(weight: AdaptedWeight) -> Iterator[tuple[int, int]]:
    """A weight's row-major entries in stretches of :data:`CHUNK`: first, one past the last."""
    count = math.prod(weight.shape)
    return ((first, min(first + CHUNK, count)) for first in range(0, count, CHUNK))


def _pair(first: AdapterLike, second: AdapterLike, check_base: bool) -> tuple[Stored, Stored]:
    one, other = as_stored(first), as_stored(second)
    if check_base:
        check_same_base(one, other)
    return one, other


def _whole(first: AdapterLike, second: AdapterLike, check_base: bool) -> Moments:
    one, other = _pair(first, second, check_base)
    return _same(one, other) if one.layout == other.layout else compare(one, other, check_base=False).whole


def _same(one: Stored, other: Stored) -> Moments:
    """The moments of two updates on one layout, from theta and the group sizes alone."""
    made = map_of(one.layout)
    if isinstance(made, Fastfood):
        u, v, w = (_dense(made, theta) for theta in (one.theta, other.theta, one.theta.double() - other.theta.double()))
        return Moments(float(u.dot(u)), float(v.dot(v)), float(u.dot(v)), float(w.dot(w)))
    # n_j f_j², which is 1 in an isometric layout: by the formula it would be 1 up to a rounding. An empty group counts 0.
    sizes = made.sizes()
    counts = sizes.clamp(max=1).double() if one.layout.isometric else sizes.double()
    a, b = one.theta.double().cpu(), other.theta.double().cpu()
    pairs = ((a, a), (b, b), (a, b), (a - b, a - b))
    return Moments(*(float((counts * left * right).sum()) for left, right in pairs))


def _dense(made: Fastfood, theta: Tensor) -> Tensor:
    """P·theta of a dense map, shape (D,), float64."""
    return made.apply(theta.detach().cpu().double(), made.constants(dtype=torch.float64))


def _sum(found: dict[str, Moments]) -> Moments:
    def total(field: str) -> float:
        return math.fsum(getattr(moments, field) for moments in found.values())

    return Moments(total("first"), total("second"), total("product"), total("difference"))
