"""A dense structured random map from theta to the update: the scheme ``gpart-fastfood-v1``.

Invariant: its constants come from the seed by integers and by IEEE 754's four operations and square root on them, on the
CPU, so that they have the same bits on every device, platform and library version. So has P·theta, which is computed by
additions and single products in a fixed order, but where a compiler fuses a product with a sum.

    P = the first D rows of P_0, P_1, ..., each N x N, N = 2^ceil(log2 d), applied to theta with N - d zeros after it
    P_b = S_b H G_b Π_b H B_b         H: Walsh-Hadamard, entries 1 and -1;  B_b: diagonal of signs;  Π_b: a permutation;
                                      G_b: diagonal of Gaussians;  S_b = 1 / (‖G_b‖ sqrt(D))

P is dense: every entry of theta moves every weight of a block, at a cost of O(D log N) in place of O(D), and nothing of
the size D x d exists. H is its own transpose, so that the gradient, Pᵀ·g, is the same steps in the opposite order.

**Isometry** holds in the mean only. Each of the first d columns of every whole P_b has the same norm, so if N divides D
the diagonal of PᵀP is 1 to the rounding; the other entries have mean 0 over the signs and are of size sqrt(2/D) or so.
So E‖P·theta‖² = ‖theta‖² over the seeds, and one seed's ‖P·theta‖² / ‖theta‖² has a standard deviation of about 2/sqrt(D)
where theta is spread over its entries (measured: 0.0078 at D = 65,536). A last P_b that is cut adds a spread of its own. And
a theta that was trained comes from P itself: after six steps on MiniLM (D = 1.8 million) ‖P·theta‖ was 1.004 ‖theta‖.

The hash of position p for purpose c is SplitMix64's finaliser of key_c + p * 9E3779B97F4A7C15, key_c being output c of
SplitMix64 started at the seed. Position i = b N + r gives the sign r of B_b (c = 0, the lowest bit), the key by which Π_b
sorts r (c = 1, as a signed number; equal ones by position), and the Gaussian r of G_b (c = 2): its upper 16 bits k are a
level of a table, the normal distribution's quantile at (k + 1/2) / 2^16, in whole multiples of 2^-16.

Sources: Le, Sarlós, Smola, "Fastfood: approximating kernel expansions in loglinear time", ICML 2013; Aghajanyan, Gupta,
Zettlemoyer, "Intrinsic dimensionality explains the effectiveness of language model fine-tuning", ACL 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from gpart.errors import GPartError
from gpart.partition import check_numbers, check_range, signed, splitmix64
from gpart.projections.hashing import GOLDEN, finalise

LEVELS = 1 << 16
"""Levels of the table of Gaussians, and what its entries are multiples of."""

MOST = 1 << 30
"""Of D: group indices are int32, and the squares of 2^30 Gaussians add up to less than 2^63."""

_CPU = torch.device("cpu")
_AT_ONCE = 1 << 20  # positions whose constants are made together; sorting them takes a few times their memory


class Constants(NamedTuple):
    """What the transform multiplies by and looks up, each of shape (blocks, N)."""

    signs: Tensor
    """B, 1 or -1, int8."""
    order: Tensor
    """Π: row r takes entry ``order[r]``, int32."""
    factors: Tensor
    """S G, floating-point."""


@dataclass(frozen=True)
class Fastfood:
    """The map from ``d`` numbers to ``size`` that a seed stands for.

    Args:
        size: D, the number of adapted weights.
        d: the length of theta, 1 to ``size``; both at most 2^30.
        seed: an unsigned 64-bit integer.

    Raises:
        GPartError: if a number is outside its range.

    Example:
        >>> fastfood = Fastfood(size=1000, d=5, seed=0)
        >>> update = fastfood.apply(torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]), fastfood.constants())
        >>> update.shape, round(update.norm().item(), 6)
        (torch.Size([1000]), 1.0)
    """

    size: int
    d: int
    seed: int

    def __post_init__(self) -> None:
        check_numbers(self.size, self.d, self.seed)
        if self.size > MOST:
            raise GPartError(f"fastfood takes at most 2^30 = {MOST} weights, got D={self.size}")

    @property
    def width(self) -> int:
        """N, the smallest power of two that is d or more."""
        return 1 << (self.d - 1).bit_length()

    @property
    def blocks(self) -> int:
        """How many P_b there are, the last of which may be cut."""
        return -(-self.size // self.width)

    @property
    def nbytes(self) -> int:
        """What the constants take, in bytes, in float32."""
        return 9 * self.blocks * self.width

    def constants(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Constants:
        """The constants on a device, computed on the CPU.

        Args:
            device: where they go.
            dtype: of the factors; they are rounded once from float64.
        """
        blocks, width, target = self.blocks, self.width, torch.device(device)
        shape = (blocks, width)
        made = Constants(
            torch.empty(shape, dtype=torch.int8, device=target),
            torch.empty(shape, dtype=torch.int32, device=target),
            torch.empty(shape, dtype=dtype, device=target),
        )
        rows = max(1, _AT_ONCE // width)
        for first in range(0, blocks if target.type != "meta" else 0, rows):
            part = slice(first, min(first + rows, blocks))
            made.signs[part] = 1 - 2 * (self._hash(0, part) & 1).to(torch.int8)
            made.order[part] = self._hash(1, part).argsort(dim=1, stable=True).to(torch.int32)
            gaussians = gaussian_table()[(self._hash(2, part) >> 48) + LEVELS // 2]
            norms = gaussians.square().sum(1, keepdim=True).double()  # whole numbers, in whatever order
            made.factors[part] = (gaussians.double() / norms.mul(self.size).sqrt()).to(dtype)
        return made

    def apply(self, theta: Tensor, constants: Constants) -> Tensor:
        """P·theta, shape (D,), in the dtype of ``theta``; by differentiable operations that any transform follows.

        Args:
            theta: shape (d,), float32 or wider.
            constants: of its device and dtype.
        """
        signs, order, factors = constants
        rows = pad(theta, (0, self.width - self.d)) * signs
        rows = hadamard(rows, self.width).gather(1, order.long()) * factors
        return hadamard(rows, self.width).reshape(-1)[: self.size]

    def _hash(self, purpose: int, blocks: slice) -> Tensor:
        key, start = splitmix64(self.seed, 3)[purpose], blocks.start * self.width
        count = (blocks.stop - blocks.start) * self.width
        states = torch.arange(count, dtype=torch.int64, device=_CPU).mul_(signed(GOLDEN, 64))
        return finalise(states.add_(signed(key + start * GOLDEN, 64))).view(-1, self.width)


def hadamard(rows: Tensor, width: int) -> Tensor:
    """H·x for each row x: H[i, j] is 1 where i and j have an even number of common bits, else -1.

    Args:
        rows: shape (blocks, width).
        width: a power of two.

    Example:
        >>> hadamard(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 4)
        tensor([[10., -2., -4.,  0.]])
    """
    half = 1
    while half < width:
        pairs = rows.reshape(-1, 2, half)
        one, other = pairs[:, 0], pairs[:, 1]
        rows = torch.stack((one + other, one - other), 1)
        half *= 2
    return rows.reshape(-1, width)


@cache
def gaussian_table() -> Tensor:
    """The normal distribution's quantiles at (k + 1/2) / 2^16, k from 0 on, in multiples of 2^-16, int64.

    The library's logarithm may round the last bit in another way on another platform. No quantile lies so near to the
    middle between two multiples that this could be seen.

    Example:
        >>> table = gaussian_table()
        >>> (table[-1] / LEVELS).item(), torch.equal(table, -table.flip(0))
        (4.324920654296875, True)
    """
    inverse = NormalDist().inv_cdf
    upper = [round(inverse((LEVELS + 2 * k + 1) / (2 * LEVELS)) * LEVELS) for k in range(LEVELS // 2)]
    half = torch.tensor(upper, dtype=torch.int64, device=_CPU)
    return torch.cat([-half.flip(0), half])


@dataclass(frozen=True)
class Positions:
    """Each position as a group of its own: how a weight finds its stretch of P·theta.

    Args:
        size: D, below 2^31, since group indices are int32.

    Raises:
        GPartError: if it is outside its range.

    Example:
        >>> Positions(10).groups(3, 6)
        tensor([3, 4, 5], dtype=torch.int32)
    """

    size: int

    indices: ClassVar[Literal["computed"]] = "computed"
    dtype: ClassVar[torch.dtype] = torch.int32

    def __post_init__(self) -> None:
        check_numbers(self.size, self.size, 0)

    @property
    def d(self) -> int:
        """D, of which many groups there are."""
        return self.size

    def groups(
        self,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.int32,
    ) -> Tensor:
        """The positions ``start`` to ``stop - 1`` themselves."""
        stop = check_range(start, stop, self.size)
        return torch.arange(start, stop, dtype=dtype, device=device)

    def sizes(self) -> Tensor:
        """1 for each position, int64."""
        return torch.ones(self.size, dtype=torch.int64, device=_CPU)
