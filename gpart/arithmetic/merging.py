"""The ways to make one vector of several: linear, TIES, DARE and pruning by magnitude, on theta.

Invariant: each takes the vectors in the order given, works in float64, and is rounded once by who calls. The same numbers
and seed give the same bits.

Names and meanings are those of PEFT's ``add_weighted_adapter``, with one difference: signs are elected among the vectors
times their coefficients, so that a vector that is to be subtracted votes with the sign that it has in the sum. Where all
coefficients are positive and equal, that is the same.

Sources: Ilharco et al., "Editing models with task arithmetic", ICLR 2023 (linear); Yadav et al., "TIES-merging: resolving
interference when merging models", NeurIPS 2023; Yu et al., "Language models are super Mario", ICML 2024 (DARE).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal, get_args

import torch
from torch import Tensor

from gpart.errors import GPartError

CombinationType = Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
MajoritySignMethod = Literal["total", "frequency"]

COMBINATION_TYPES: tuple[CombinationType, ...] = get_args(CombinationType)
MAJORITY_SIGN_METHODS: tuple[MajoritySignMethod, ...] = get_args(MajoritySignMethod)

ELECTING: tuple[CombinationType, ...] = ("ties", "dare_ties")
"""Those that elect a sign, by a ``majority_sign_method``."""
DROPPING: tuple[CombinationType, ...] = ("dare_linear", "dare_ties")
"""Those that drop numbers at random, by a ``seed``."""


def merged(
    vectors: Sequence[Tensor],
    coefficients: Sequence[float],
    combination_type: CombinationType = "linear",
    density: float | None = None,
    majority_sign_method: MajoritySignMethod = "total",
    seed: int = 0,
) -> Tensor:
    """One vector of several.

    Args:
        vectors: of one shape (d,).
        coefficients: one for each.
        combination_type: ``"linear"``: the sum of coefficient times vector. ``"magnitude_prune"``: the same of vectors
            of which the largest numbers are kept. ``"ties"``: these, and of each place only those of the sign that
            weighs more, over their count. ``"dare_linear"`` and ``"dare_ties"``: with numbers that are kept at random
            and divided by ``density``.
        density: the share of numbers that is kept, above 0 and at most 1; not for ``"linear"``.
        majority_sign_method: the sign that weighs more is that of the sum (``"total"``), or of most (``"frequency"``); + where
            both are equal.
        seed: of what is dropped at random.

    Returns:
        Shape (d,), float64.

    Raises:
        GPartError: if a setting is not among its choices, ``density`` is missing, or it is given to ``"linear"``.

    Example:
        >>> a, b = torch.tensor([4.0, 1.0, -2.0]), torch.tensor([2.0, -3.0, 0.5])
        >>> merged([a, b], [0.5, -1.0])
        tensor([ 0.0000,  3.5000, -1.5000], dtype=torch.float64)
        >>> merged([a, b], [1.0, 1.0], "ties", density=0.67)  # 1 and 0.5 are trimmed
        tensor([ 3., -3., -2.], dtype=torch.float64)
    """
    check_settings(combination_type, density, majority_sign_method, seed)
    wide = [vector.double() for vector in vectors]
    if density is not None and combination_type in DROPPING:
        generator = torch.Generator().manual_seed(seed)
        wide = [_dropped(vector, density, generator) for vector in wide]
    elif density is not None:
        wide = [_largest(vector, density) for vector in wide]
    weighted = [coefficient * vector for coefficient, vector in zip(coefficients, wide, strict=True)]
    if combination_type in ELECTING:
        return _disjoint(torch.stack(weighted), majority_sign_method)
    return total(weighted, coefficients)


def total(weighted: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """The sum in the order given, without those of coefficient 0: not even a zero's sign changes by them."""
    used = [value for value, coefficient in zip(weighted, coefficients, strict=True) if coefficient]
    return reduce(torch.add, used) if used else torch.zeros_like(weighted[0])


def check_settings(combination_type: object, density: object, majority_sign_method: object, seed: object) -> None:
    """Checks how vectors are to be combined.

    Raises:
        GPartError: if a setting is not among its choices or outside its range.
    """
    if combination_type in ("svd", "cat") or str(combination_type).endswith("_svd"):
        raise GPartError(
            f"combination_type={combination_type!r} is for low-rank adapters; of theta there are {_words(COMBINATION_TYPES)}"
        )
    if combination_type not in COMBINATION_TYPES:
        raise GPartError(f"combination_type must be one of {_words(COMBINATION_TYPES)}, got {combination_type!r}")
    if majority_sign_method not in MAJORITY_SIGN_METHODS:
        raise GPartError(
            f"majority_sign_method must be one of {_words(MAJORITY_SIGN_METHODS)}, got {majority_sign_method!r}"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise GPartError(f"seed must be a whole number between 0 and 2^63 - 1, got {seed!r}")
    if combination_type == "linear":
        if density is not None:
            raise GPartError(f"combination_type='linear' keeps every number: it takes no density, got {density!r}")
        return
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        raise GPartError(
            f"combination_type={combination_type!r} needs density, the share of theta's numbers that is kept, above 0 and"
            f" at most 1; got {density!r}"
        )


def _largest(vector: Tensor, density: float) -> Tensor:
    """The vector with its ``int(density * d)`` largest numbers, the first of equal ones, and 0 elsewhere."""
    # Sorted, and not topk, which takes any of equal ones. The product may lie a rounding below a whole number (0.29 * 100).
    keep = int(density * vector.numel() + 1e-9)
    chosen = vector.abs().argsort(descending=True, stable=True)[:keep]
    out = torch.zeros_like(vector)
    out[chosen] = vector[chosen]
    return out


def _dropped(vector: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """The vector with each number kept with probability ``density``, and divided by it: the same on the average."""
    drawn = torch.rand(vector.shape, dtype=torch.float64, generator=generator)
    return torch.where(drawn < density, vector / density, 0.0)


def _disjoint(weighted: Tensor, majority_sign_method: MajoritySignMethod) -> Tensor:
    """The sum at each place of the numbers that have the elected sign, over their count; shape (vectors, d) -> (d,)."""
    votes = weighted if majority_sign_method == "total" else weighted.sign()
    elected = torch.where(votes.sum(dim=0) >= 0, 1.0, -1.0)
    agreeing = weighted.sign() == elected
    return torch.where(agreeing, weighted, 0.0).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)


def _words(choices: Sequence[str]) -> str:
    return ", ".join(map(repr, choices))
