"""The maps that are products of two factors: LoRA, VeRA and Uni-LoRA. Their Jacobians depend on where theta is.

Invariant: as in :mod:`gpart.studies.isometry.maps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpart.studies.isometry.spectrum import Spectrum, from_gram, spectrum


class Product:
    """A map with a Jacobian that depends on the vector."""

    def delta(self, vector: Tensor) -> Tensor:
        """The update."""
        raise NotImplementedError

    def push(self, vector: Tensor, direction: Tensor) -> Tensor:
        """By forward differentiation."""
        moved: Tensor = torch.func.jvp(self.delta, (vector,), (direction,))[1]
        return moved


@dataclass(frozen=True)
class Rank:
    """One layer of LoRA: an (m x n) weight, rank r, factor s. The vector has A (r x n), then B (m x r)."""

    shape: tuple[int, int]
    r: int
    scaling: float

    @property
    def length(self) -> int:
        """Of its part of the vector."""
        return self.r * sum(self.shape)

    def factors(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """A and B."""
        a, b = torch.split(part, [self.r * self.shape[1], self.r * self.shape[0]])
        return a.view(self.r, self.shape[1]), b.view(self.shape[0], self.r)


@dataclass(frozen=True)
class LoRA(Product):
    """s·B·A in each layer."""

    layers: Sequence[Rank]

    @property
    def size(self) -> int:
        """D."""
        return sum(layer.shape[0] * layer.shape[1] for layer in self.layers)

    def delta(self, vector: Tensor) -> Tensor:
        """The products."""
        made = []
        for layer, part in zip(self.layers, torch.split(vector, [layer.length for layer in self.layers]), strict=True):
            a, b = layer.factors(part)
            made.append((b @ a).reshape(-1) * layer.scaling)
        return torch.cat(made)

    def spectrum(self, vector: Tensor) -> Spectrum:
        """From the singular values a of A and b of B, r each.

        dW = s·(dB·A + B·dA). In the singular vectors of both, entry (p, q) of dW is s·(a_q·dB_pq + b_p·dA_pq), where the
        first term is there for q ≤ r and the second for p ≤ r. So for each layer

            s·sqrt(a_q² + b_p²)  and 0     for p, q ≤ r      (the 0: B·G and G⁻¹·A have one product)
            s·a_q                          for p > r, q ≤ r   m - r times each
            s·b_p                          for p ≤ r, q > r   n - r times each.

        At B = 0, where LoRA starts, these are s·a_q, m times each, and r·n zeros.
        """
        parts: list[tuple[Tensor | float, int]] = []
        for layer, part in zip(self.layers, torch.split(vector, [layer.length for layer in self.layers]), strict=True):
            a, b = layer.factors(part)
            (m, n), r = layer.shape, layer.r
            alpha, beta = _singular(a, r), _singular(b, r)
            both = (alpha[None, :] ** 2 + beta[:, None] ** 2).sqrt()
            # A rank above a side has more columns than the side has directions.
            inner = both[: min(m, r), : min(n, r)]
            outer = [(alpha[: min(n, r)], max(m - r, 0)), (beta[: min(m, r)], max(n - r, 0))]
            found = [(inner, 1), *outer]
            rank = sum(values.numel() * count for values, count in found)
            parts += [(layer.scaling * values, count) for values, count in found]
            parts.append((0.0, layer.length - rank))
        return spectrum(parts, "closed form")


def _singular(matrix: Tensor, r: int) -> Tensor:
    """As many singular values as the rank, with zeros where the matrix has a side shorter than r."""
    found = torch.linalg.svdvals(matrix)
    return torch.cat([found, found.new_zeros(r - len(found))])


@dataclass(frozen=True)
class Scales:
    """One layer of VeRA: the frozen A (r x n) and B (m x r). The vector has e (r), then b (m)."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class VeRA(Product):
    """diag(b)·B·diag(e)·A in each layer, A and B frozen and random."""

    layers: Sequence[Scales]

    @property
    def size(self) -> int:
        """D."""
        return sum(layer.b.shape[0] * layer.a.shape[1] for layer in self.layers)

    def _parts(self, vector: Tensor) -> list[tuple[Scales, Tensor, Tensor]]:
        lengths = [(layer.b.shape[1], layer.b.shape[0]) for layer in self.layers]
        parts = torch.split(vector, [r + m for r, m in lengths])
        pairs = [torch.split(part, list(both)) for part, both in zip(parts, lengths, strict=True)]
        return [(layer, e, b) for layer, (e, b) in zip(self.layers, pairs, strict=True)]

    def delta(self, vector: Tensor) -> Tensor:
        """The products."""
        made = [(b[:, None] * layer.b) @ (e[:, None] * layer.a) for layer, e, b in self._parts(vector)]
        return torch.cat([one.reshape(-1) for one in made])

    def spectrum(self, vector: Tensor) -> Spectrum:
        """JᵀJ of a layer, with M = B·diag(e)·A: row p of the weight is b_p·M_p.

            b with b: diag(‖M_p‖²)       e with e: (Bᵀ·diag(b²)·B) ∘ (A·Aᵀ)       b with e: b_p·B_pk·(M·Aᵀ)_pk

        At b = 0, where VeRA starts, these are the ‖M_p‖ and r zeros.
        """
        parts: list[tuple[Tensor | float, int]] = []
        for layer, e, b in self._parts(vector):
            product = (layer.b * e) @ layer.a
            rows, inner = product.square().sum(1), (layer.b.T * b**2) @ layer.b * (layer.a @ layer.a.T)
            cross = b[:, None] * layer.b * (product @ layer.a.T)
            gram = torch.cat([torch.cat([inner, cross.T], 1), torch.cat([cross, rows.diag()], 1)])
            parts.append((from_gram(gram), 1))
        return spectrum(parts, "Gram matrix")


@dataclass(frozen=True)
class UniLoRA(Product):
    """LoRA whose (A, B) of all layers are looked up in one vector: entry i is theta[indices_i]·factors_i."""

    lora: LoRA
    indices: Tensor
    factors: Tensor

    @property
    def size(self) -> int:
        """D."""
        return self.lora.size

    def delta(self, vector: Tensor) -> Tensor:
        """The products."""
        return self.lora.delta(vector[self.indices] * self.factors)

    def spectrum(self, vector: Tensor) -> None:
        """By products."""
        return
