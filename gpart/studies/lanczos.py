"""Lanczos: the extreme eigenvalues of a symmetric matrix H of which only products with vectors are known.

Invariant: the result depends on the product, the first vector and the number of steps alone. Every vector of the basis is
made orthogonal to all before it, twice, so that no eigenvalue comes up more often than it is there.

After m steps, Q (size x m) has orthonormal columns and T = QᵀHQ is tridiagonal. T's eigenvalues (Ritz values) approach
H's from inside, the extreme ones first. For T·s = λ·s the residual is ‖H·Qs - λ·Qs‖ = |beta_m · s_m|, which is the bound
as far as the products are exact. It goes to 0 where T has found an eigenvalue, but rounding stays: no bound is below
:data:`ROUNDING` times the largest value's.

Source: B. N. Parlett, "The Symmetric Eigenvalue Problem", 1980, chapter 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 10
"""Units of the dtype's rounding that a product with H is taken to be exact to."""


@dataclass(frozen=True)
class Ritz:
    """What m steps found, maybe none; all of shape (m,), float64, from the lowest value to the highest."""

    values: Tensor
    """The Ritz values. If the space was exhausted, they are eigenvalues."""

    bounds: Tensor
    """How far at most an eigenvalue of H is from each, if products are as exact as :data:`ROUNDING` says."""

    parts: Tensor
    """The squared first entries of T's eigenvectors: the share of the first vector that lies along each."""


def random_vector(like: Tensor, seed: int) -> Tensor:
    """A normal random vector of the shape, dtype and device of ``like``; drawn on the CPU, so that a seed is a vector."""
    drawn = torch.randn(len(like), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(like)


def lanczos(
    product: Callable[[Tensor], Tensor], first: Tensor, steps: int, tell: Callable[[int], None] = lambda _: None
) -> Ritz:
    """Ritz values of H: as many as steps, or fewer where the space is exhausted or a product is not finite.

    Args:
        product: v to H·v, both of shape (size,).
        first: where it starts, shape (size,). The basis has its dtype and device, and takes ``steps`` times its memory.
        steps: products to compute, at most.
        tell: is called with the number of products that are done.

    Example:
        >>> matrix = torch.diag(torch.tensor([5.0, 1.0, -2.0], dtype=torch.float64))
        >>> found = lanczos(lambda v: matrix @ v, torch.ones(3, dtype=torch.float64), steps=3)
        >>> found.values.round(decimals=6).tolist(), found.parts.round(decimals=3).tolist()
        ([-2.0, 1.0, 5.0], [0.333, 0.333, 0.333])
    """
    basis = [first / first.norm()]
    alphas: list[float] = []
    betas: list[float] = []
    while True:
        image = product(basis[-1])
        alpha = float(image @ basis[-1])
        known = torch.stack(basis)
        for _ in range(2):  # once leaves what rounding brings back
            image = image - (known @ image) @ known
        beta = float(image.norm())
        if not (math.isfinite(alpha) and math.isfinite(beta)):  # as at a diverged point; the steps before it stay
            break
        alphas.append(alpha)
        betas.append(beta)
        tell(len(alphas))
        # What is left of a vector in an exhausted space is rounding alone.
        smallest = 1e3 * torch.finfo(first.dtype).eps * max(map(abs, alphas))
        if len(alphas) == min(steps, len(first)) or betas[-1] <= smallest:
            break
        basis.append(image / betas[-1])
    if not alphas:
        return Ritz(*torch.empty(3, 0, dtype=torch.float64))
    beside = torch.tensor(betas[:-1], dtype=torch.float64)
    inner = torch.diag(torch.tensor(alphas, dtype=torch.float64)) + torch.diag(beside, 1) + torch.diag(beside, -1)
    values, vectors = torch.linalg.eigh(inner)
    least = ROUNDING * torch.finfo(first.dtype).eps * values.abs().max()
    return Ritz(values, (betas[-1] * vectors[-1].abs()).clamp(min=least), vectors[0] ** 2)
