"""An adapter's update in another layout: what of it another P can say, and what is lost.

Invariant: theta' is the one whose update P'·theta' is nearest to the update u = P·theta, so what is lost stands at a right
angle to what is kept:

    theta' = P'ᵀ·u  (isometric),     ‖u‖² = ‖P'·theta'‖² + ‖u - P'·theta'‖²

up to the rounding of theta'. Without isometry it is theta'_j = (P'ᵀ·u)_j / n_j, the mean over each group. Two independent
partitions share little: of a random update about d'/D of ‖u‖² is kept. Only a layout whose groups are unions or parts of the
other's keeps more.

Source: paper, section 3 (PᵀP = I makes P·Pᵀ the orthogonal projection).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpart.arithmetic.layout import Layout, by_name, layout_of
from gpart.arithmetic.measures import Update, factors, norm, stretches, union
from gpart.arithmetic.positions import groups_of, places
from gpart.arithmetic.stored import AdapterLike, Stored, as_stored, check_same_base, made_of
from gpart.config import GPartConfig
from gpart.errors import GPartError
from gpart.serialization.manifest import Manifest

_DECIDED_BY_THE_WEIGHTS = (
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "slices",
    "bias",
    "modules_to_save",
)
"""Settings that only a model can turn into a list of weights."""


@dataclass(frozen=True, eq=False)
class Projection:
    """An adapter in another layout, with what that has cost."""

    adapter: Stored
    """The projected one."""

    norm: float
    """‖u‖, of the update before."""

    kept: float
    """‖P'·theta'‖, of the update after."""

    lost: float
    """‖u - P'·theta'‖."""

    @property
    def relative(self) -> float:
        """The lost share, ‖u - P'·theta'‖ / ‖u‖, 0 to 1; 0 where the update is 0."""
        return self.lost / self.norm if self.norm else 0.0


def project(adapter: AdapterLike, onto: AdapterLike | Manifest | GPartConfig, check_base: bool = True) -> Projection:
    """The adapter whose update in another layout is nearest to this one's.

    Args:
        adapter: stored or live.
        onto: whose layout is wanted: an adapter, stored or live, on the same base; a manifest; or a config with the targets
            that the adapter has, and another ``d``, ``seed``, ``isometric`` or ``dropout``.
        check_base: False projects also where the fingerprints of the bases differ.

    Returns:
        The projected adapter, with the name, the heads and the base of the first and the settings of the second; and
        the norms of what is kept and lost.

    Raises:
        GPartError: if the config has other targets, the bases or the saved modules differ, or d is more than D.

    Example:
        >>> from gpart import GPartConfig, attach
        >>> adapter = attach(torch.nn.Linear(4, 4), GPartConfig(d=16, target_modules=".*"))
        >>> _ = adapter.theta.data.fill_(1.0)
        >>> made = project(adapter, GPartConfig(d=1, target_modules=".*"))  # one shared number says all of it
        >>> made.adapter.theta, made.lost
        (tensor([4.]), 0.0)
    """
    source = as_stored(adapter)
    manifest = _wanted(source, onto, check_base)
    layout = layout_of(manifest, "the layout to project onto")
    theta = _reduced(source, layout)
    dtype = torch.promote_types(source.theta.dtype, torch.float32)
    made = made_of(manifest, theta.to(dtype), source.heads, manifest.name)
    return Projection(made, norm(source), norm(made), _lost(source, made))


def _reduced(source: Stored, layout: Layout) -> Tensor:
    """theta', shape (d,), float64: the sums of the update over the groups of another layout, scaled."""
    update, groups, weights = Update(source.layout, source.theta), groups_of(layout), by_name(layout.weights)
    sums = torch.zeros(layout.d, dtype=torch.float64)
    for weight in union(source.layout, layout):
        if weight.name not in weights or weight.name not in update.weights:
            continue  # nothing of the update, or nothing that the other layout can say
        for first, last in stretches(weight):
            values = update.read(weight.name, first, last)[0]
            for place, begin, end in places(weights[weight.name], first, last):
                sums.scatter_add_(0, groups.groups(begin, end).long(), values[place])
    # P'ᵀP' is the identity, or diag(n) without isometry.
    return sums * factors(layout, groups) if layout.isometric else sums / groups.sizes().clamp(min=1)


def _lost(source: Stored, made: Stored) -> float:
    """‖u - P'·theta'‖ by the differences themselves, for theta' as it is stored."""
    before, after = Update(source.layout, source.theta), Update(made.layout, made.theta)
    total = 0.0
    for weight in union(source.layout, made.layout):
        for stretch in stretches(weight):
            total += float((before.read(weight.name, *stretch) - after.read(weight.name, *stretch)).square().sum())
    return math.sqrt(total)


def _wanted(source: Stored, onto: AdapterLike | Manifest | GPartConfig, check_base: bool) -> Manifest:
    """The manifest that the projected adapter has."""
    mine = source.manifest
    if isinstance(onto, GPartConfig):
        before, after = mine.config.to_dict(), onto.to_dict()
        if different := [
            f"{key} is {before[key]!r} and {after[key]!r}"
            for key in _DECIDED_BY_THE_WEIGHTS
            if before[key] != after[key]
        ]:
            raise GPartError(
                f"{source.source} and the config to project onto have other targets, and only a model tells which weights those"
                f" are: {'; '.join(different)}. Give an adapter that has them instead, trained or not"
            )
        if onto.d > mine.size:
            raise GPartError(f"d={onto.d} is more than the {mine.size} weights that {source.source} adapts")
        return replace(mine, config=onto)
    if isinstance(onto, Manifest):
        target = onto
        if check_base and (onto.base, onto.format) != (mine.base, mine.format):
            raise GPartError(
                f"{source.source} and the layout to project onto have different bases: fingerprints {mine.base} and"
                f" {onto.base}. check_base=False takes them for one"
            )
    else:
        other = as_stored(onto)
        target = other.manifest
        if check_base and target.config.modules_to_save == mine.config.modules_to_save:
            check_same_base(source, other)
    if target.config.modules_to_save != mine.config.modules_to_save:
        raise GPartError(
            f"{source.source} has modules_to_save={mine.config.modules_to_save}, and the layout to project onto"
            f" {target.config.modules_to_save}: heads stay as they are, so these must be equal"
        )
    # A fingerprint is of its manifest's format; where these differ, check_base=False has said that the bases are one.
    base = mine if mine.format == target.format else target
    return replace(target, name=mine.name, base=base.base, parts=base.parts)
