"""The partition: from a seed to disjoint, balanced groups of weight positions.

Invariant: for every ``size``, ``d`` and ``seed`` the map ``i -> group(i)`` is a fixed function of integers, the same on
every device, platform and library version, and any position can be computed alone. Each group ``j`` has exactly
``n_j = size // d + (1 if j < size % d else 0)`` members, so group sizes are known without counting.

The function is the scheme ``gpart-v1``:

    k      = max(8, bit_length(size - 1)),  all arithmetic mod 2^k
    z      = the first 12 outputs of SplitMix64 started at the seed
    mix(x) : six rounds of  x = x * (z[2r] | 1) + z[2r + 1];  x ^= x >> s_r,  s_r = k // 2 (r even) or k // 3 (r odd)
    pi(i)  : x = mix(i), again while x >= size            (cycle walking: a bijection of 0 .. size - 1)
    group(i) = pi(i) mod d

Each round is a bijection of the k-bit integers, so ``mix`` is one, and walking its cycles back into ``0 .. size - 1``
keeps it one. A change to any of this is a new scheme with a new name; files written under the old one stay readable.

SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from gpart.errors import GPartError

SCHEME = "gpart-v1"
"""The name written into every adapter file."""

_ROUNDS = 6
MASK64 = (1 << 64) - 1


def chunk_size(device: torch.device | str) -> int:
    """How many positions group indices are computed for, and masks drawn for, at once.

    A CPU's temporaries then stay in its second-level cache; a GPU wants few large kernels.
    """
    return 1 << 18 if torch.device(device).type == "cpu" else 1 << 24


def stretch_size(device: torch.device | str) -> int:
    """How many positions the two operations work on at once, a multiple of :func:`chunk_size`.

    More than a cache holds: between two layers of a model each call costs a CPU about 0.1 ms (code that is not in its
    cache any more, threads that sleep), so that few calls are worth more (measured, see docs/performance.md).
    """
    return max(1 << 20, chunk_size(device))


def splitmix64(seed: int, count: int) -> list[int]:
    """The first ``count`` outputs of SplitMix64 started at ``seed``."""
    outputs, x = [], seed
    for _ in range(count):
        x = (x + 0x9E3779B97F4A7C15) & MASK64
        y = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        y = ((y ^ (y >> 27)) * 0x94D049BB133111EB) & MASK64
        outputs.append(y ^ (y >> 31))
    return outputs


def signed(value: int, bits: int) -> int:
    """``value mod 2^bits`` as the two's-complement number that a signed tensor of that width holds."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def check_numbers(size: int, d: int, seed: int) -> None:
    """Checks D, d and the seed of groups.

    Raises:
        GPartError: if a number is outside its range.
    """
    if not 1 <= size <= 1 << 62:
        raise GPartError(f"size must be between 1 and 2^62, got {size}")
    if not 1 <= d <= size:
        raise GPartError(f"d must be between 1 and the number of adapted weights, {size}; got d={d}")
    if d >= 1 << 31:
        raise GPartError(f"d must be below 2^31 = {1 << 31}, since group indices are int32; got d={d}")
    if not 0 <= seed <= MASK64:
        raise GPartError(f"seed must be between 0 and 2^64 - 1, got {seed}")


def check_range(start: int, stop: int | None, size: int) -> int:
    """Checks that positions ``start`` to ``stop - 1`` are among ``size``; returns ``stop``, or ``size`` in its place.

    Raises:
        GPartError: if they are not.
    """
    stop = size if stop is None else stop
    if not 0 <= start <= stop <= size:
        raise GPartError(f"positions {start} to {stop} are not within 0 to {size}")
    return stop


def index_dtype(d: int) -> torch.dtype:
    """The narrowest dtype that holds the indices of d groups and that all devices copy from: int16 or int32."""
    return torch.int16 if d <= 1 << 15 else torch.int32


class Groups(Protocol):
    """Groups of weight positions: :class:`Partition`, or a map of :mod:`gpart.projections`."""

    @property
    def size(self) -> int:
        """D, the number of positions."""

    @property
    def d(self) -> int:
        """The number of groups; some may be empty, but for :class:`Partition`'s."""

    @property
    def indices(self) -> Literal["auto", "stored", "computed"]:
        """How they may be kept: as :class:`gpart.config.MemoryPolicy` says, or in one way only."""

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype of group indices, int16 or int32."""

    def groups(
        self,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.int32,
    ) -> Tensor:
        """The group indices of positions ``start`` to ``stop - 1``."""

    def sizes(self) -> Tensor:
        """The group sizes n_j, shape (d,), int64."""


@dataclass(frozen=True)
class Partition:
    """The cut of ``size`` positions into ``d`` groups that a seed stands for (paper, section 3.2).

    Nothing is stored but the three integers.

    Args:
        size: D, the number of adapted weights, 1 to 2^62.
        d: the number of groups, 1 to ``size`` and below 2^31 (group indices are int32).
        seed: an unsigned 64-bit integer.

    Raises:
        GPartError: if a number is outside its range.

    Example:
        >>> partition = Partition(size=10, d=3, seed=0)
        >>> partition.groups().tolist()
        [1, 2, 2, 1, 1, 0, 0, 2, 0, 0]
        >>> partition.sizes().tolist()
        [4, 3, 3]
        >>> partition.groups(7, 9).tolist()
        [2, 0]
    """

    size: int
    d: int
    seed: int = 0

    indices: ClassVar[Literal["auto"]] = "auto"

    def __post_init__(self) -> None:
        check_numbers(self.size, self.d, self.seed)

    def sizes(self) -> Tensor:
        """The group sizes n_j, shape (d,), int64."""
        small, larger = divmod(self.size, self.d)
        sizes = torch.full((self.d,), small, dtype=torch.int64)
        sizes[:larger] += 1
        return sizes

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds every group index and that all devices copy from: int16 or int32.

        Example:
            >>> Partition(100_000, d=1 << 15).dtype, Partition(100_000, d=(1 << 15) + 1).dtype
            (torch.int16, torch.int32)
        """
        return index_dtype(self.d)

    def groups(
        self,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.int32,
    ) -> Tensor:
        """The group indices of positions ``start`` to ``stop - 1``, shape (stop - start,).

        Args:
            start: first position.
            stop: one past the last position; default ``size``.
            device: where they are computed; the values are the same everywhere.
            dtype: int32, or another that holds ``d - 1``, such as :attr:`dtype`.

        Raises:
            GPartError: if the range is not within 0 to ``size``.
        """
        stop = check_range(start, stop, self.size)
        step = chunk_size(device)
        out = torch.empty(stop - start, dtype=dtype, device=device)
        if out.is_meta:
            return out
        for first in range(start, stop, step):
            last = min(first + step, stop)
            out[first - start : last - start] = self._permuted(first, last, device).remainder_(self.d)
        return out

    @property
    def bits(self) -> int:
        """k, the number of bits of ``mix``."""
        return max(8, (self.size - 1).bit_length())

    @property
    def fits_int32(self) -> bool:
        """Whether 32-bit arithmetic gives the scheme's values, as it does where every position fits into int32."""
        return self.size < 1 << 31

    def rounds(self) -> list[tuple[int, int, int]]:
        """The rounds of ``mix``: factor and addend, unsigned 64-bit integers to be taken mod 2^k, and the shift.

        Example:
            >>> [shift for _, _, shift in Partition(size=1000, d=7).rounds()]  # k = 10
            [5, 3, 5, 3, 5, 3]
        """
        z = splitmix64(self.seed, 2 * _ROUNDS)
        return [(z[2 * r] | 1, z[2 * r + 1], self.bits // 3 if r % 2 else self.bits // 2) for r in range(_ROUNDS)]

    def constants(self) -> list[int]:
        """What compiled code needs to know: D, d, 2^k - 1, the two shifts, then factor and addend of each round.

        Returns:
            17 unsigned 64-bit integers.
        """
        rounds = self.rounds()
        numbers = [self.size, self.d, (1 << self.bits) - 1, rounds[0][2], rounds[1][2]]
        return numbers + [number for factor, addend, _ in rounds for number in (factor, addend)]

    def _permuted(self, start: int, stop: int, device: torch.device | str) -> Tensor:
        """pi(start) .. pi(stop - 1), as int32 where size fits into it (twice as fast, same values), else int64."""
        dtype, width = (torch.int32, 32) if self.fits_int32 else (torch.int64, 64)
        rounds = [(signed(factor, width), signed(addend, width), shift) for factor, addend, shift in self.rounds()]
        mask = (1 << self.bits) - 1

        def mix(x: Tensor) -> Tensor:
            # Wrap-around of the signed type followed by the mask is arithmetic mod 2^bits.
            for factor, addend, shift in rounds:
                x = x.mul_(factor).add_(addend).bitwise_and_(mask)
                x ^= x >> shift
            return x

        x = mix(torch.arange(start, stop, dtype=dtype, device=device))
        # Fewer than half of all k-bit numbers lie outside (k is minimal, but for sizes below 129), so this ends fast.
        outside = (x >= self.size).nonzero().squeeze(1)
        while outside.numel():
            walked = mix(x[outside])
            x[outside] = walked
            outside = outside[walked >= self.size]
        return x
