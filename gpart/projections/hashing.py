"""Groups by hashing each position alone: the schemes ``gpart-hash-v1`` and ``authors-stateless``.

Invariant: a group index is a function of integers, the same on every device, platform and library version. Nothing
balances the groups: sizes follow a multinomial distribution and are counted; a group may be empty.

Both are outputs of SplitMix64's finaliser, mod 2^64, whose state grows by the same step from position to position:

    v = origin + step * i;  v = (v ^ v>>30) * BF58476D1CE4E5B9;  v = (v ^ v>>27) * 94D049BB133111EB;  v = v ^ v>>31
    group(i) = v mod d      (v without a sign)

- :func:`hashed`, after HashedNets (Chen, Wilson, Tyree, Weinberger, Chen, "Compressing neural networks with the hashing
  trick", ICML 2015): step = 9E3779B97F4A7C15, origin = step + the first output of SplitMix64 started at the seed. These are
  the outputs of SplitMix64 started there, so that two seeds' groups have nothing in common.
- :func:`authors_stateless`, the map of the paper's own code: step = 1, origin = seed + 9E3779B97F4A7C15. Seed s + 1 gives
  the groups of seed s, shifted by one position.

PᵀP has 1 on its diagonal for every group that is not empty and 0 elsewhere: P is isometric on the entries of theta that
have a position, and sends the others to 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gpart.partition import check_numbers, check_range, chunk_size, index_dtype, signed, splitmix64

GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass(frozen=True)
class HashedGroups:
    """Groups of ``size`` positions by the hash of each; made by :func:`hashed` and :func:`authors_stateless`.

    Args:
        size: D, the number of adapted weights, 1 to 2^62.
        d: the number of groups, 1 to ``size`` and below 2^31.
        origin: the state at position 0, taken mod 2^64.
        step: what it grows by from position to position.

    Raises:
        GPartError: if a number is outside its range.
    """

    size: int
    d: int
    origin: int
    step: int

    indices: ClassVar[Literal["auto"]] = "auto"

    def __post_init__(self) -> None:
        check_numbers(self.size, self.d, 0)

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype of group indices, int16 or int32."""
        return index_dtype(self.d)

    def groups(
        self,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.int32,
    ) -> Tensor:
        """The group indices of positions ``start`` to ``stop - 1``, as :meth:`gpart.partition.Partition.groups`."""
        stop = check_range(start, stop, self.size)
        if torch.compiler.is_compiling():
            origin = signed(self.origin + self.step * start, 64)
            made: Tensor = hashed_groups(stop - start, self.d, origin, signed(self.step, 64), torch.device(device))
            return made.to(dtype)
        out = torch.empty(stop - start, dtype=dtype, device=device)
        if out.is_meta:
            return out
        chunk = chunk_size(device)
        for first in range(start, stop, chunk):
            last = min(first + chunk, stop)
            out[first - start : last - start] = _hash(
                self.origin + self.step * first, self.step, last - first, out, self.d
            )
        return out

    def sizes(self) -> Tensor:
        """The group sizes n_j, shape (d,), int64, by one pass over all positions."""
        return count_groups(self)


def hashed(size: int, d: int, seed: int) -> HashedGroups:
    """The scheme ``gpart-hash-v1``.

    Args:
        size: D.
        d: the number of groups.
        seed: an unsigned 64-bit integer.

    Example:
        >>> hashed(size=10, d=3, seed=0).groups().tolist(), hashed(size=10, d=3, seed=0).sizes().tolist()
        ([0, 2, 2, 0, 2, 2, 2, 2, 2, 2], [2, 0, 8])
    """
    check_numbers(size, d, seed)
    (key,) = splitmix64(seed, 1)
    return HashedGroups(size, d, key + GOLDEN, GOLDEN)


def authors_stateless(size: int, d: int, seed: int) -> HashedGroups:
    """The scheme ``authors-stateless``.

    Args:
        size: D.
        d: the number of groups.
        seed: their ``proj_seed``, an unsigned 64-bit integer.

    Example:
        >>> authors_stateless(size=64, d=7, seed=42).groups(0, 10).tolist()
        [5, 1, 0, 2, 3, 5, 1, 0, 3, 6]
    """
    check_numbers(size, d, seed)
    return HashedGroups(size, d, seed + GOLDEN, 1)


def count_groups(groups: Any) -> Tensor:
    """The group sizes n_j, shape (d,), int64, counted chunk by chunk.

    Args:
        groups: :class:`gpart.partition.Groups`.
    """
    sizes = torch.zeros(groups.d, dtype=torch.int64, device="cpu")
    chunk = max(chunk_size("cpu"), 4 * groups.d)  # each count makes d numbers
    for first in range(0, groups.size, chunk):
        sizes += torch.bincount(groups.groups(first, min(first + chunk, groups.size)), minlength=groups.d)
    return sizes


def finalise(state: Tensor) -> Tensor:
    """SplitMix64's finaliser of each state, in place; int64, read as unsigned."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        state ^= _shifted(state, shift)
        state *= signed(factor, 64)
    state ^= _shifted(state, 31)
    return state


def _hash(origin: int, step: int, count: int, like: Tensor, d: int) -> Tensor:
    v = torch.arange(count, dtype=torch.int64, device=like.device)
    v = finalise(v.mul_(signed(step, 64)).add_(signed(origin, 64)))
    # v = 2h + b without a sign, and 2(h mod d) + b fits into 33 bits.
    return _shifted(v, 1).remainder_(d).mul_(2).add_(v & 1).remainder_(d)


def _shifted(value: Tensor, by: int) -> Tensor:
    """``value >> by`` of unsigned numbers: torch shifts int64 with its sign."""
    return (value >> by).bitwise_and_((1 << (64 - by)) - 1)


@torch.library.custom_op("gpart::hashed_groups", mutates_args=())
def hashed_groups(count: int, d: int, origin: int, step: int, device: torch.device) -> Tensor:
    """Group indices, int32, for ``torch.compile``, which need not follow the arithmetic; signed 64-bit integers."""
    out = torch.empty(count, dtype=torch.int32, device=device)
    chunk = chunk_size(device)
    for first in range(0, count, chunk):
        last = min(first + chunk, count)
        out[first:last] = _hash(origin + step * first, step, last - first, out, d)
    return out


@hashed_groups.register_fake
def _(*described: Any) -> Tensor:
    count, *_, device = described
    return torch.empty(count, dtype=torch.int32, device=device)
