"""The spectrum of a Jacobian that is known by its products alone: whole if it is small, else estimated by Lanczos.

Invariant: the same seed gives the same numbers.

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

from gpart.errors import GPartError
from gpart.studies.isometry.maps import Map
from gpart.studies.isometry.spectrum import Spectrum, from_gram, spectrum
from gpart.studies.lanczos import lanczos

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

    Raises:
        GPartError: if products with J are not finite.
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
        found = lanczos(product, first, steps, partial(_told, tell, start * steps, total))
        if not len(found.values):
            raise GPartError("the Jacobian's products are not finite here, so there are no singular values to estimate")
        parts.append((found.values, found.parts * length / starts))
        errors.append(float(max(found.bounds[0], found.bounds[-1]) / found.values.abs().max()))
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
