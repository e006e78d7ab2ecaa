"""The extreme eigenvalues of a symmetric matrix of which only products with vectors are known.

Invariant: the values depend on the product, the size, the number of steps and the seed alone. Each comes with a bound: an
eigenvalue of the matrix lies within it.

After m steps, Q (size x m) has orthonormal columns and T = QᵀHQ is tridiagonal. T's eigenvalues (Ritz values) approach
H's from inside, the extreme ones first. For T·s = λ·s the residual is ‖H·Qs - λ·Qs‖ = |beta_m · s_m|, which is the bound.

Source: B. N. Parlett, "The Symmetric Eigenvalue Problem", 1980, chapter 13; B. Ghorbani, S. Krishnan, Y. Xiao, "An
Investigation into Neural Net Optimization via Hessian Eigenvalue Density", ICML 2019, with full reorthogonalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Eigenvalue:
    """A Ritz value, and how far at most an eigenvalue is from it."""

    value: float
    bound: float


def lanczos(product: Callable[[Tensor], Tensor], like: Tensor, steps: int, seed: int = 0) -> list[Eigenvalue]:
    """Ritz values of H, the largest first: as many as steps, or fewer where the space is exhausted.

    Args:
        product: v to H·v, both of shape (size,).
        like: a vector of shape (size,), whose dtype and device the basis gets; it takes ``steps`` times its memory.
        steps: products to compute.
        seed: of the first vector.

    Example:
        >>> matrix = torch.diag(torch.tensor([5.0, 1.0, -2.0], dtype=torch.float64))
        >>> [round(one.value, 6) for one in lanczos(lambda v: matrix @ v, matrix[0], steps=3)]
        [5.0, 1.0, -2.0]
    """
    drawn = torch.randn(len(like), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like)
    basis = [drawn / drawn.norm()]
    alphas: list[float] = []
    betas: list[float] = []
    while True:
        image = product(basis[-1])
        alphas.append(float(image @ basis[-1]))
        for _ in range(2):  # once leaves what rounding brings back
            for column in basis:
                image = image - (image @ column) * column
        betas.append(float(image.norm()))
        # What is left of a vector in an exhausted space is rounding alone.
        smallest = 100 * torch.finfo(like.dtype).eps * max(map(abs, [*alphas, *betas]))
        if len(alphas) == min(steps, len(like)) or betas[-1] <= smallest:
            break
        basis.append(image / betas[-1])
    between = torch.tensor(betas[:-1], dtype=torch.float64)
    inner = torch.diag(torch.tensor(alphas, dtype=torch.float64)) + torch.diag(between, 1) + torch.diag(between, -1)
    values, vectors = torch.linalg.eigh(inner)
    found = [
        Eigenvalue(float(value), abs(betas[-1] * float(last))) for value, last in zip(values, vectors[-1], strict=True)
    ]
    return found[::-1]
