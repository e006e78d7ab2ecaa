"""Singular values with their multiplicities, and what is said of them.

Invariant: the multiplicities of a spectrum add up to the length of the trainable vector, so that a direction that moves
no weight counts as a singular value of 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

How = Literal["closed form", "Gram matrix", "Lanczos"]

ZERO = 1e-6
"""Below this part of the largest one a singular value is 0: a Gram matrix in float64 resolves about 1e-8."""

POINTS = 201
"""Quantiles of a spectrum that are written down."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a Jacobian.

    Args:
        values: shape (k,), float64, ascending.
        counts: shape (k,), float64: how many directions each stands for.
        how: ``"closed form"``; ``"Gram matrix"``, by the eigenvalues of JᵀJ; or ``"Lanczos"``, an estimate, whose
            largest value is a lower bound. Its least one bounds nothing where J has zeros: a node may stand for zeros and
            others together, and lie between them.
        error: of Lanczos: the residual of the two outer values, as a part of the largest. There is a true singular value
            that near to each, as far as squares go.
    """

    values: Tensor
    counts: Tensor
    how: How
    error: float = 0.0

    @property
    def length(self) -> float:
        """The length of the trainable vector."""
        return float(self.counts.sum())

    @property
    def largest(self) -> float:
        """The largest singular value."""
        return float(self.values[-1])

    @property
    def rms(self) -> float:
        """Sqrt of the mean of the squares, ‖J‖_F / sqrt(d): what a random step of length 1 moves the weights by."""
        return float(((self.values**2 * self.counts).sum() / self.counts.sum()).sqrt())

    @property
    def zeros(self) -> float:
        """The part of all directions that move no weight."""
        return float(self.counts[self.values <= ZERO * self.largest].sum() / self.counts.sum())

    @property
    def least(self) -> float:
        """The smallest singular value that is not 0; 0 if there is none."""
        above = self.values[self.values > ZERO * self.largest]
        return float(above[0]) if len(above) else 0.0

    @property
    def condition(self) -> float:
        """The largest over the smallest that is not 0: 1 is an isometry up to one common factor; infinite without any."""
        return self.largest / self.least if self.least else float("inf")

    def quantiles(self, at: Tensor) -> Tensor:
        """The singular values below which these parts of all directions lie, the smallest and the largest at 0 and 1."""
        ends = self.counts.cumsum(0) / self.counts.sum()
        places = torch.searchsorted(ends, at.double() - 1e-9)
        return self.values[places.clamp(max=len(self.values) - 1)]

    def to_json(self) -> dict[str, Any]:
        """What is said of it, and its quantiles at ``POINTS`` equal distances from 0 to 1."""
        return {
            "how": self.how,
            "error": self.error,
            "length": round(self.length),
            "least": self.least,
            "largest": self.largest,
            "rms": self.rms,
            "zeros": self.zeros,
            "condition": self.condition if self.least else None,
            "quantiles": self.quantiles(torch.linspace(0, 1, POINTS, dtype=torch.float64)).tolist(),
        }


def spectrum(parts: Iterable[tuple[Tensor | float, int]], how: How) -> Spectrum:
    """The spectrum of a Jacobian that falls into parts.

    Args:
        parts: singular values and how often each of them is there.
        how: as of :class:`Spectrum`.

    Example:
        >>> found = spectrum([(2.0, 3), (torch.tensor([0.0, 1.0]), 1)], "closed form")
        >>> found.values.tolist(), found.counts.tolist(), found.zeros, found.condition
        ([0.0, 1.0, 2.0], [1.0, 1.0, 3.0], 0.2, 2.0)
    """
    values, counts = [], []
    for value, count in parts:
        some = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
        values.append(some)
        counts.append(torch.full_like(some, count))
    joined, order = torch.cat(values).sort()
    sorted_counts = torch.cat(counts)[order]
    kept = sorted_counts > 0
    return Spectrum(joined[kept], sorted_counts[kept], how)


def from_gram(gram: Tensor) -> Tensor:
    """The singular values of J from JᵀJ, ascending.

    Args:
        gram: shape (d, d), float64, symmetric.
    """
    found: Tensor = torch.linalg.eigvalsh(gram)
    return found.clamp(min=0.0).sqrt()
