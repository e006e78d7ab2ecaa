"""Adding adapters up. The update P·theta is the task vector, so task arithmetic is arithmetic on theta.

Invariant: on one layout P is one matrix, so that sum_k c_k P·theta_k = P·(sum_k c_k theta_k): the combined adapter's update
is the combined updates, with one rounding of theta and no other approximation. Adapters of two layouts are never added up
here.

TIES and DARE select among theta's numbers, each of which stands for a whole group of weights.

Source: paper, section 3 (the map is linear); for the ways to combine see :mod:`gpart.arithmetic.merging`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch

from gpart.arithmetic.heads import Heads, chosen_number, combined_heads
from gpart.arithmetic.merging import CombinationType, MajoritySignMethod, check_settings, merged
from gpart.arithmetic.stored import AdapterLike, Stored, as_stored, check_coefficient, check_same_base, made_of
from gpart.errors import GPartError


def combine(
    adapters: Mapping[AdapterLike, float] | Sequence[tuple[AdapterLike, float]],
    combination_type: CombinationType = "linear",
    *,
    density: float | None = None,
    majority_sign_method: MajoritySignMethod = "total",
    seed: int = 0,
    heads: Heads = None,
    name: str | None = None,
    check_base: bool = True,
) -> Stored:
    """One adapter of several on one layout.

    Args:
        adapters: each with its coefficient, in the order in which they are added: ``{a: 0.5, b: -1.0}``; pairs where one
            comes twice.
        combination_type: ``"linear"``, exact; ``"ties"``, ``"dare_linear"``, ``"dare_ties"`` or ``"magnitude_prune"``, see
            :func:`gpart.arithmetic.merging.merged`. The words are those of PEFT's ``add_weighted_adapter``.
        density: for all but linear, the share of theta's numbers that is kept.
        majority_sign_method: for TIES, ``"total"`` or ``"frequency"``.
        seed: for DARE.
        heads: what becomes of the saved modules and buffers. None: they must be equal. ``"combine"``: the sum with the
            coefficients, which then must add up to 1. One of the adapters, or its number: its heads.
        name: the new adapter's; default the first's.
        check_base: False combines also where the fingerprints of the bases differ.

    Returns:
        The adapter, with the settings of the first, or of the one whose heads were chosen. Theta is summed in float64 and
        rounded once, to float32 or what is wider among the adapters.

    Raises:
        GPartError: if layouts, bases or heads differ, or a setting is wrong; with what differs.

    Example:
        >>> from gpart import GPartConfig, attach
        >>> def trained(values):
        ...     adapter = attach(torch.nn.Linear(4, 4).requires_grad_(False), GPartConfig(d=2, target_modules=".*"))
        ...     _ = adapter.theta.data.copy_(torch.tensor(values))
        ...     return Stored.of(adapter)
        >>> a, b = trained([2.0, 4.0]), trained([1.0, -1.0])
        >>> combine({a: 0.5, b: -1.0}, check_base=False).theta  # their bases are random, here
        tensor([0., 3.])
    """
    pairs = list(adapters.items()) if isinstance(adapters, Mapping) else list(adapters)
    if not pairs:
        raise GPartError("there is nothing to combine: give adapters with their coefficients, {a: 0.5, b: -1.0}")
    coefficients = [
        check_coefficient(value, f"the coefficient of adapter {number}") for number, (_, value) in enumerate(pairs)
    ]
    check_settings(combination_type, density, majority_sign_method, seed)
    number = chosen_number(heads, [adapter for adapter, _ in pairs])
    known = {id(adapter): as_stored(adapter) for adapter, _ in pairs}
    stored = [known[id(adapter)] for adapter, _ in pairs]
    for other in stored[1:]:
        _check_same_layout(stored[0], other)
        if check_base:
            check_same_base(stored[0], other)
    kept = combined_heads(stored, coefficients, heads) if number is None else stored[number].heads
    thetas = [each.theta for each in stored]
    dtype = reduce(torch.promote_types, (theta.dtype for theta in thetas), torch.float32)
    theta = merged(thetas, coefficients, combination_type, density, majority_sign_method, seed).to(dtype)
    return made_of(stored[number or 0].manifest, theta, kept, stored[0].manifest.name if name is None else name)


def average(adapters: Sequence[AdapterLike], *, heads: Heads = None, check_base: bool = True) -> Stored:
    """The mean of several adapters: :func:`combine` with 1/n for each; ``heads="combine"`` averages the heads too."""
    return combine([(adapter, 1 / len(adapters)) for adapter in adapters], heads=heads, check_base=check_base)


def interpolate(
    first: AdapterLike, second: AdapterLike, t: float, *, heads: Heads = None, check_base: bool = True
) -> Stored:
    """(1 - t)·first + t·second: the first at t = 0, the second at t = 1, each to the bit.

    Args:
        first: stored or live.
        second: the same.
        t: any finite number; outside 0 to 1 it goes on along the line.
        heads: as for :func:`combine`; ``"combine"`` interpolates the heads too.
        check_base: as for :func:`combine`.

    Raises:
        GPartError: as :func:`combine`.
    """
    t = check_coefficient(t, "t")
    return combine([(first, 1 - t), (second, t)], heads=heads, check_base=check_base)


def negate(adapter: AdapterLike) -> Stored:
    """-1 times the update, to the bit; a base with it forgets what the adapter has learned. The heads stay as trained."""
    return combine([(adapter, -1.0)])


def _check_same_layout(first: Stored, second: Stored) -> None:
    if different := first.layout.differences(second.layout):
        raise GPartError(
            f"{first.source} and {second.source} have different layouts, so that their thetas cannot be added up:"
            f" {'; '.join(different)}. Make both active on one model (gpart.set_active), which adds up their updates, or bring one to"
            " the other's layout by gpart.arithmetic.project (gpart project), at a loss that it tells"
        )
