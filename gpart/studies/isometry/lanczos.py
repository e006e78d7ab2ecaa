"""The spectrum of a Jacobian that is known by its products alone: whole if it is small, else estimated by Lanczos.

Invariant: the same seed gives the same numbers, and every vector of a Krylov basis is made orthogonal to all before it, twice,
so that no eigenvalue comes up more often than it is there.

Stochastic Lanczos quadrature: from a random unit vector, k steps give a tridiagonal T with JᵀJ ≈ Q T Qᵀ. Its eigenvalues
are nodes, the squared first entries of its eigenvectors the parts of all directions that they stand for. The mean over
several starts estimates the whole distribution; the outer nodes go to the largest and the least eigenvalue.

Sources: Golub, Meurant, "Matrices, moments and quadrature", 1994; Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via
stochastic Lanczos quadrature", SIAM J. Matrix Anal. Appl. 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gpart.studies.isometry.maps import Map
from gpart.studies.isometry.spectrum import Spectrum, from_gram, spectrum

Tell = Callable[[int, int], None]
"""Is told how many products are done, of how many."""

WHOLE = 1536
"""Up to this length of the trainable vector JᵀJ is made as a whole."""


def estimate(made: Map, vector: Tensor, steps: int, starts: int, seed: int, tell: Tell) -> Spectrum:
    """The spectrum of a map's Jacobian at ``vector``.

    Args:
        made: the map.
        vector: shape (d,), float64.
        steps: of Lanczos from each start.
        starts: random vectors that it starts from.
        seed: of these.
        tell: is told how far it is.
    """
    product = normal_product(made, vector)
    length = len(vector)
    if length <= WHOLE:
        gram = torch.empty(length, length, dtype=vector.dtype)
        for place, unit in enumerate(torch.eye(length, dtype=vector.dtype)):
            gram[place] = product(unit)
            tell(place + 1, length)
        return spectrum([(from_gram((gram + gram.T) / 2), 1)], "Gram matrix")
    steps = min(steps, length)
    generator = torch.Generator().manual_seed(seed)
    parts, errors, total = [], [], steps * starts
    for start in range(starts):
        first = torch.randn(length, generator=generator, dtype=vector.dtype)
        nodes, parted, error = lanczos(product, first, steps, partial(_told, tell, start * steps, total))
        parts.append((nodes, parted * length / starts))
        errors.append(error)
    values = torch.cat([nodes for nodes, _ in parts]).clamp(min=0.0).sqrt()
    order = values.argsort()
    counts = torch.cat([parted for _, parted in parts])[order]
    return Spectrum(values[order], counts, "Lanczos", max(errors))


def _told(tell: Tell, before: int, total: int, step: int) -> None:
    tell(before + step, total)


def normal_product(made: Map, vector: Tensor) -> Callable[[Tensor], Tensor]:
    """X to JᵀJ·x, J being the Jacobian at ``vector``: a product with J forwards, one with Jᵀ back."""
    back = torch.func.vjp(made.delta, vector)[1]

    def product(direction: Tensor) -> Tensor:
        pulled: Tensor = back(made.push(vector, direction))[0]
        return pulled

    return product


def lanczos(
    product: Callable[[Tensor], Tensor], first: Tensor, steps: int, tell: Callable[[int], None]
) -> tuple[Tensor, Tensor, float]:
    """Nodes and parts of the quadrature from one start, and the larger residual of the two outer nodes over the largest.

    It ends early where the Krylov space is closed: the nodes are then eigenvalues.

    Example:
        >>> nodes, parts, error = lanczos(lambda x: x * torch.tensor([1.0, 4.0, 4.0]), torch.ones(3), 3, print)
        1
        2
        >>> nodes.round(decimals=5).tolist(), [round(part, 3) for part in parts.tolist()], error < 1e-5
        ([1.0, 4.0], [0.333, 0.667], True)
    """
    basis = [first / first.norm()]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for step in range(steps):
        moved = product(basis[-1])
        diagonal.append(basis[-1] @ moved)
        known = torch.stack(basis)
        for _ in range(2):
            moved = moved - (known @ moved) @ known
        rest = moved.norm()
        beside.append(rest)
        tell(step + 1)
        if rest <= 1e3 * torch.finfo(first.dtype).eps * max(map(abs, diagonal)):
            break
        basis.append(moved / rest)
    size = len(diagonal)
    matrix = torch.diag(torch.stack(diagonal))
    if size > 1:
        off = torch.stack(beside[: size - 1])
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    nodes, vectors = torch.linalg.eigh(matrix)
    residuals = beside[-1] * vectors[-1].abs()
    return nodes, vectors[0] ** 2, float(max(residuals[0], residuals[-1]) / nodes.abs().max())
