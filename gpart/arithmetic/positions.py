"""The positions of the vector of length D: which group each is in, and which entries of a weight they are.

Invariant: nothing here is longer than the stretch that is asked for. What makes the groups is named once, in
:func:`groups_of`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gpart.arithmetic.layout import Layout
from gpart.errors import GPartError
from gpart.injection.targets import AdaptedWeight
from gpart.partition import Groups
from gpart.projections.fastfood import Fastfood
from gpart.projections.registry import by_scheme


def map_of(layout: Layout) -> Groups | Fastfood:
    """The map that a layout's scheme names.

    Raises:
        GPartError: if it is none that is known here.
    """
    return by_scheme(layout.scheme, layout.size, layout.d, layout.seed)


def groups_of(layout: Layout) -> Groups:
    """What gives each position of a layout its group.

    Raises:
        GPartError: if its scheme has no groups, or none that are known here.
    """
    made = map_of(layout)
    if isinstance(made, Fastfood):
        raise GPartError(f"the scheme {layout.scheme!r} has no groups that an update could be brought to")
    return made


def places(weight: AdaptedWeight, first: int, last: int) -> Iterator[tuple[slice | Tensor, int, int]]:
    """Which entries of a stretch of a weight are adapted, and where those stand in the vector.

    Args:
        weight: its blocks are row-major.
        first: the stretch's first entry, of the weight's row-major entries.
        last: one past its last.

    Yields:
        For each block that the stretch meets: its entries in the stretch, as a slice or a mask; and the vector's positions,
        the first and one past the last, which are as many.
    """
    inner = math.prod(weight.shape[weight.dim + 1 :])
    whole = weight.shape[weight.dim] * inner
    for start, stop, offset in weight.blocks:
        low, high = start * inner, stop * inner
        begin, end = (_entries_before(at, whole, low, high) for at in (first, last))
        if begin == end:
            continue
        if weight.dim == 0:
            yield slice(max(low, first) - first, min(high, last) - first), offset + begin, offset + end
        else:
            within = torch.arange(first, last).remainder_(whole)
            yield (within >= low) & (within < high), offset + begin, offset + end


def _entries_before(at: int, whole: int, low: int, high: int) -> int:
    """How many entries of a block stand before a weight's entry ``at``; the block has ``low`` to ``high`` of each ``whole``."""
    turns, rest = divmod(at, max(whole, 1))
    return turns * (high - low) + min(max(rest - low, 0), high - low)
