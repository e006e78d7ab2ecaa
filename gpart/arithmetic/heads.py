"""What becomes of the heads where adapters are combined: the saved modules and buffers, which are stored in full.

Invariant: nothing is chosen silently. Heads that are equal to the bit pass; others are combined or chosen because somebody
said so, or refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from gpart.arithmetic.merging import total
from gpart.arithmetic.stored import AdapterLike, Stored
from gpart.errors import GPartError
from gpart.injection.tensors import same_bits

Heads = Literal["combine"] | int | AdapterLike | None
"""``"combine"``, one of the adapters or its number in the order given, or None: they must be equal."""


def chosen_number(heads: Heads, adapters: Sequence[AdapterLike]) -> int | None:
    """The number of the adapter whose heads are taken; None where they are combined or must be equal.

    Raises:
        GPartError: if it is none of these.
    """
    if heads is None or heads == "combine":
        return None
    for number, adapter in enumerate(adapters):
        if heads is adapter:
            return number
    if isinstance(heads, int) and not isinstance(heads, bool) and 0 <= heads < len(adapters):
        return heads
    raise GPartError(
        f"heads must be 'combine', or one of the {len(adapters)} adapters or its number from 0 to {len(adapters) - 1}, got"
        f" {heads!r}"
    )


def combined_heads(adapters: Sequence[Stored], coefficients: Sequence[float], heads: Heads) -> dict[str, Tensor]:
    """The heads of the result, where they are not one adapter's.

    Args:
        adapters: in order.
        coefficients: one for each.
        heads: ``"combine"``: the sum with the same coefficients, which then are to add up to 1; in float64 and rounded once.
            None: all must be equal, bit for bit.

    Raises:
        GPartError: if they have other names or shapes, differ where they must not, cannot be added up, or are of other
            classes.
    """
    first = adapters[0]
    for other in adapters[1:]:
        _check_alike(first, other)
    different = [
        name for name in first.heads if not all(same_bits(first.heads[name], other.heads[name]) for other in adapters)
    ]
    if not different or heads is None:
        if different:
            raise GPartError(
                f"the adapters have different heads: {_listed(different)} differ. heads='combine' adds them up where the"
                " coefficients add up to 1; or name the adapter whose heads are taken"
            )
        return first.heads
    if not math.isclose(sum(coefficients), 1.0, rel_tol=1e-9):
        raise GPartError(
            f"heads='combine' needs coefficients that add up to 1, as a head is a weight and no update; {list(coefficients)}"
            f" add up to {sum(coefficients):g}. Name the adapter whose heads are taken instead"
        )
    _check_labels(adapters)
    out = dict(first.heads)
    for name in different:
        values = [adapter.heads[name] for adapter in adapters]
        if not all(value.is_floating_point() for value in values):
            raise GPartError(
                f"{name} holds {values[0].dtype}, which has no weighted sum: name the adapter whose heads are taken"
            )
        dtype = values[0].dtype
        for value in values[1:]:
            dtype = torch.promote_types(dtype, value.dtype)
        weighted = [coefficient * value.double() for coefficient, value in zip(coefficients, values, strict=True)]
        out[name] = total(weighted, coefficients).to(dtype)
    return out


def heads_distance(first: Stored, second: Stored) -> dict[str, float | None]:
    """By name the distance ‖a - b‖ of what both hold besides theta; None where one lacks it or shapes differ."""
    one, other = first.heads, second.heads
    return {name: _distance(one.get(name), other.get(name)) for name in {**one, **other}}


def _distance(first: Tensor | None, second: Tensor | None) -> float | None:
    if first is None or second is None or first.shape != second.shape or first.is_complex() or second.is_complex():
        return None
    return float((first.double() - second.double()).norm())


def _check_alike(first: Stored, second: Stored) -> None:
    one, other = first.heads, second.heads
    only = [name for name in one if name not in other], [name for name in other if name not in one]
    for here, there, names in ((first, second, only[0]), (second, first, only[1])):
        if names:
            raise GPartError(
                f"the adapters have different heads: {here.source} holds {_listed(names)}, which {there.source} lacks. Name"
                " the adapter whose heads are taken"
            )
    shapes: Mapping[str, tuple[list[int], list[int]]] = {
        name: (list(one[name].shape), list(other[name].shape)) for name in one
    }
    for name, (mine, its) in shapes.items():
        if mine != its:
            raise GPartError(
                f"the adapters have different heads: {name} has shape {mine} in {first.source} and {its} in {second.source}."
                " Name the adapter whose heads are taken"
            )


def _check_labels(adapters: Sequence[Stored]) -> None:
    """Checks that the rows of all heads stand for the same classes, where the files name them."""
    named = [adapter for adapter in adapters if adapter.manifest.about.labels is not None]
    for other in named[1:]:
        its, mine = named[0].manifest.about.labels, other.manifest.about.labels
        if its != mine:
            raise GPartError(
                f"heads='combine' adds heads up row by row, and {named[0].source} has the classes {its}, {other.source}"
                f" {mine}. Name the adapter whose heads are taken"
            )


def _listed(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
