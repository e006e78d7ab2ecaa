"""What a layer reads where its model carries several adapters: W0, one adapter's W0 + P·theta, or a sum of several.

Invariants: with one active adapter and the factor 1 the layer reads what it would read if that one were alone. A sum is
taken in float32 or wider and rounded once to W0's dtype:

    W = W0 + c_1 P_1·theta_1 + c_2 P_2·theta_2 + ...

Adapters of one layout have one P, so their thetas are summed first, in the order in which they were named, and expanded
once: that is bit for bit the adapter that holds c_1 theta_1 + c_2 theta_2 + ... A sum is computed once in each forward pass,
whatever the memory setting; within ``cached()`` of any of its adapters it is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from gpart.errors import GPartError
from gpart.injection.heads import Place
from gpart.injection.modules import WeightReader, theta_of
from gpart.injection.targets import AdaptedWeight
from gpart.injection.tensors import dense
from gpart.materialize.cache import Store, versions
from gpart.materialize.plain import is_followed
from gpart.materialize.weights import Weights
from gpart.ops.sums import wide_dtype


class Term(NamedTuple):
    """An active adapter."""

    weights: Weights
    factor: float
    layout: int = 0
    """Its layout's number within a :class:`Sum`: equal for adapters that have one P."""


class Base:
    """What a layer reads where no active adapter adapts it: W0."""

    def read(self, weight: AdaptedWeight, base: Tensor, training: bool) -> Tensor:
        """W0, unpacked where it is packed."""
        return dense(base)


class Sum:
    """What layers read where several adapters are active, or one with another factor than 1.

    Args:
        terms: the active adapters.
    """

    def __init__(self, terms: Iterable[Term]) -> None:
        self.terms: dict[str, list[tuple[Term, AdaptedWeight]]] = {}
        every, numbers = list(terms), dict[object, int]()
        if len(every) > 1:  # once: a layout names every weight, and to compare two takes time
            every = [term._replace(layout=numbers.setdefault(term.weights.layout, len(numbers))) for term in every]
        for term in every:
            for weight in term.weights.plan.weights:
                self.terms.setdefault(weight.name, []).append((term, weight))
        self.kept = Store()
        """Within ``cached()``, W by weight."""

    def read(self, weight: AdaptedWeight, base: Tensor, training: bool) -> Tensor:
        """W0 and the updates of those adapters that are not disabled.

        Raises:
            GPartError: if the merged model is trained.
        """
        every = self.terms[weight.name]
        terms = [(term, its) for term, its in every if not term.weights.disabled]
        lead = every[0][0].weights
        if lead.bases is not None:
            if len(terms) == len(every):
                return lead.merged(base, training)
            base = lead.bases[weight.name].to(base)
        thetas = [theta_of(term.weights.home, term.weights.name) for term, _ in terms]
        followed, compiling = is_followed(*thetas, base), torch.compiler.is_compiling()
        if followed or compiling:
            return summed(terms, thetas, base, training)
        seeds = [term.weights.mask_seed(its, training) for term, its in terms]  # drawn at every read, see mask_seed
        sources = versions(base, *thetas)
        keeps = any(term.weights.cache.open for term, _ in every) and not torch.is_grad_enabled()
        store = self.kept if keeps and not any(seed is not None for seed in seeds) else lead.scope.values
        if store is lead.scope.values and len(self.kept):
            self.kept.clear()
        if (known := store.get(("sum", weight.name), sources)) is not None:
            return known
        value = summed(terms, thetas, base, training, seeds)
        if store is self.kept or lead.scope.open:
            store.put(("sum", weight.name), sources, value, base, *thetas)
        return value


def summed(
    terms: list[tuple[Term, AdaptedWeight]],
    thetas: list[Tensor],
    base: Tensor,
    training: bool = False,
    seeds: list[int | None] | None = None,
) -> Tensor:
    """W of one weight: W0 and the terms' updates, rounded once.

    Args:
        terms: the adapters, as a :class:`Sum` has them, each with the weight as its own plan has it.
        thetas: of each of them.
        base: W0.
        training: whether the layer is in training mode, in which dropout masks are drawn.
        seeds: of the masks, where they were drawn already.
    """
    groups: list[tuple[Weights, AdaptedWeight, list[tuple[float, Tensor]], int | None]] = []
    at: dict[object, int] = {}
    for number, ((term, weight), theta) in enumerate(zip(terms, thetas, strict=True)):
        own, seed = term.weights, None if seeds is None else seeds[number]
        key: object = own if own.config.dropout > 0 and training else term.layout  # each has a mask of its own
        if key in at:
            groups[at[key]][2].append((term.factor, theta))
        else:
            at[key] = len(groups)
            groups.append((own, weight, [(term.factor, theta)], seed))
    dtype, value = base.dtype, dense(base)
    if len(groups) > 1:
        value = value.to(torch.promote_types(dtype, torch.float32))
    followed = is_followed(*thetas, base)
    for own, weight, parts, seed in groups:
        if followed:
            value = own.added_plainly(weight, value, _total(parts), training)
        else:
            value = own.added(weight, value, _scaled(own, parts, value.device), training, seed)
    return value.to(dtype)


def _total(parts: list[tuple[float, Tensor]]) -> Tensor:
    """c_1 theta_1 + c_2 theta_2 + ..., added from the left in float64 and rounded once, as gpart.arithmetic.combine does."""
    (factor, first), *rest = parts
    if factor == 1.0 and not rest:
        return first
    wide = wide_dtype(first.device)
    total = first.to(wide) * factor
    for factor, theta in rest:
        total = total + theta.to(first.device, wide) * factor
    return total.to(first.dtype)


def _scaled(own: Weights, parts: list[tuple[float, Tensor]], device: torch.device) -> Tensor:
    """The sum's theta_j / sqrt(n_j), shape (d,), once per forward pass."""
    sources = () if torch.compiler.is_compiling() else versions(*(theta for _, theta in parts))
    key = ("scaled", *(factor for factor, _ in parts), device)
    scaled = own.scope.values.get(key, sources)
    if scaled is None:
        scaled = own.scale(_total(parts), device)
        if own.scope.open:
            own.scope.values.put(key, sources, scaled)
    return scaled


def readers(
    active: list[Term], names: Iterable[AdaptedWeight]
) -> dict[Place, tuple[WeightReader, AdaptedWeight] | None]:
    """Who computes each of these weights, at every module that has it.

    Args:
        active: the active adapters, in their order.
        names: weights that an adapter, active or not, adapts.

    Raises:
        GPartError: if the base weights are sharded, and not one adapter alone is to be active.
    """
    alone = len(active) == 1 and active[0].factor == 1.0
    total = Sum(active)
    if not alone and any(term.weights.sharded for term in active):
        raise GPartError("where the base weights are sharded one adapter alone can be active, with the weight 1")
    for term in active:
        term.weights.total = None if alone else total
    found: dict[Place, tuple[WeightReader, AdaptedWeight] | None] = {}
    for weight in names:
        terms = total.terms.get(weight.name, [])
        reader: tuple[WeightReader, AdaptedWeight] = (_BASE, weight)
        if len(terms) == 1 and terms[0][0].factor == 1.0:
            reader = (terms[0][0].weights, terms[0][1])
        elif terms:
            reader = (total, weight)
        for place in weight.owners:
            found[place] = reader
    return found


_BASE = Base()
