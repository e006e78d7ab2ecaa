"""Each method as a map from its trainable vector to the update of the weights, in float64.

Invariant: a map holds what is fixed; the trainable vector is an argument. ``delta`` is the update itself, W - W0 (up to
the order of the weights' numbers), by differentiable operations; ``spectrum`` has no derivative in it, but the closed form
where there is one. That the two agree, and that ``delta`` is what PEFT and this package compute, is tested.

================  ==============================================  ===============================================
method            the update                                      JᵀJ
================  ==============================================  ===============================================
GPart, hash       P·theta, groups of n_j                          diagonal, 1 (non-isometric n_j; 0 if it is empty)
Fastfood          P·theta, dense                                  PᵀP, by products
FourierFT         c·Re(ifft2(spectrum)) in each layer             diagonal, but for pairs of conjugate frequencies
LoRA              s·B·A in each layer                             from the singular values of A and B
VeRA              diag(b)·B·diag(e)·A in each layer               a matrix of m + r rows for each layer
Uni-LoRA          B·A in each layer, (A, B) = P·theta             Pᵀ·(LoRA's)·P, by products
================  ==============================================  ===============================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from gpart.partition import Groups
from gpart.projections.fastfood import Constants, Fastfood, hadamard
from gpart.studies.isometry.spectrum import Spectrum, spectrum


class Map(Protocol):
    """From the trainable vector, shape (d,), to the update, shape (D,)."""

    @property
    def size(self) -> int:
        """D, how many weights are adapted."""

    def delta(self, vector: Tensor) -> Tensor:
        """The update, shape (D,), float64."""

    def push(self, vector: Tensor, direction: Tensor) -> Tensor:
        """J·direction, shape (D,), J being the Jacobian at ``vector``."""

    def spectrum(self, vector: Tensor) -> Spectrum | None:
        """The singular values of the Jacobian at ``vector``; None where only products with it are known."""


class Linear:
    """A map that is its own Jacobian, everywhere."""

    def delta(self, vector: Tensor) -> Tensor:
        """The update."""
        raise NotImplementedError

    def push(self, vector: Tensor, direction: Tensor) -> Tensor:
        """The update of the direction."""
        return self.delta(direction)


@dataclass(frozen=True)
class Grouped(Linear):
    """GPart on groups: column j of P is 1/sqrt(n_j) on the n_j positions of group j, or 1 if it is not isometric."""

    groups: Groups
    isometric: bool

    @property
    def size(self) -> int:
        """D."""
        return self.groups.size

    def delta(self, vector: Tensor) -> Tensor:
        """P·theta."""
        sizes = self.groups.sizes().clamp(min=1).to(vector.dtype)
        scaled = vector / sizes.sqrt() if self.isometric else vector
        return scaled[self.groups.groups().long()]

    def spectrum(self, vector: Tensor) -> Spectrum:
        """Columns of P have no position in common: their norms."""
        sizes = self.groups.sizes()
        return spectrum([((sizes > 0).double() if self.isometric else sizes.double().sqrt(), 1)], "closed form")


@dataclass(frozen=True)
class Dense(Linear):
    """GPart with the fastfood transform for P."""

    fastfood: Fastfood
    constants: Constants

    @property
    def size(self) -> int:
        """D."""
        return self.fastfood.size

    def delta(self, vector: Tensor) -> Tensor:
        """P·theta. H of 2^(s+t) rows is H of 2^s rows on one side and H of 2^t on the other: two matrix products.

        :meth:`gpart.projections.fastfood.Fastfood.apply` adds in place of them, in an order that is the same everywhere;
        with its transpose it took three times as long.
        """
        width = self.fastfood.width
        half = 1 << (width.bit_length() - 1) // 2
        one, other = (
            hadamard(torch.eye(half).double(), half),
            hadamard(torch.eye(width // half).double(), width // half),
        )
        rows = pad(vector, (0, width - len(vector))) * self.constants.signs
        for factor in (None, self.constants.factors):
            if factor is not None:
                rows = rows.gather(1, self.constants.order.long()) * factor
            rows = (one @ rows.view(-1, half, width // half) @ other).view(-1, width)
        return rows.reshape(-1)[: self.size]

    def spectrum(self, vector: Tensor) -> None:
        """By products."""
        return


@dataclass(frozen=True)
class Frequencies:
    """One layer of FourierFT: shape (m, n), frequencies (2, k), factor c."""

    shape: tuple[int, int]
    indices: Tensor
    scaling: float


@dataclass(frozen=True)
class FourierFT(Linear):
    """c·Re(ifft2(C)), C being 0 but for the trained coefficients."""

    layers: Sequence[Frequencies]

    @property
    def size(self) -> int:
        """D."""
        return sum(layer.shape[0] * layer.shape[1] for layer in self.layers)

    def delta(self, vector: Tensor) -> Tensor:
        """The inverse transforms' real parts."""
        parts = torch.split(vector, [layer.indices.shape[1] for layer in self.layers])
        made = []
        for layer, part in zip(self.layers, parts, strict=True):
            rows, columns = layer.indices
            flat = part.new_zeros(layer.shape[0] * layer.shape[1])
            placed = flat.index_put((rows * layer.shape[1] + columns,), part)
            made.append(torch.fft.ifft2(placed.view(layer.shape)).real.reshape(-1) * layer.scaling)
        return torch.cat(made)

    def spectrum(self, vector: Tensor) -> Spectrum:
        """C / sqrt(2mn) for a frequency alone.

        Coefficient (u, v) moves the weights by c/(mn)·cos(2π(up/m + vq/n)). Cosines are orthogonal but for (u, v) and
        (-u, -v), which are the same one. So two trained coefficients of such a pair have c / sqrt(mn) and 0, and so has
        one that is its own pair c / sqrt(mn), where the cosine is 1 or -1 everywhere.
        """
        parts: list[tuple[Tensor | float, int]] = []
        for layer in self.layers:
            (m, n), (rows, columns) = layer.shape, layer.indices
            own, other = rows * n + columns, (-rows % m) * n + (-columns % n)
            alone = int((own == other).sum())
            pairs = (int(torch.isin(other, own).sum()) - alone) // 2
            unit = layer.scaling / (m * n) ** 0.5
            parts += [(unit, alone + pairs), (0.0, pairs), (unit / 2**0.5, len(own) - alone - 2 * pairs)]
        return spectrum(parts, "closed form")
