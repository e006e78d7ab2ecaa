"""Groups by a sequential generator: the scheme ``authors-materialized``, a map of the paper's own code.

Invariant: group(i) is output i of the Mersenne Twister MT19937 that ``init_genrand(seed)`` starts, 32 bits of it, mod d:
what ``torch.randint(0, d)`` draws on a CPU. Sizes are counted; a group may be empty.

A position cannot be computed alone, since the generator goes through all before it. Its states are remembered at regular
distances, 5 kB for a million positions, so that the blocks of a model cost one pass together, in whatever order. The numbers
are drawn on the CPU, whatever device they are for, and are kept: ``indices="computed"`` is refused.

MT19937: Matsumoto, Nishimura, "Mersenne Twister", ACM TOMACS 1998. That torch's generator is still this one is looked at
before the first use, by the 10,000th output that the C++ standard gives for seed 5489.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gpart.errors import GPartError
from gpart.partition import check_numbers, check_range, index_dtype
from gpart.projections.hashing import count_groups

_STRETCH = 1 << 20
"""Positions between two remembered states."""
_MOST = 1 << 28
"""From this d on some versions of torch draw 64 bits for a number."""
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class MaterializedGroups:
    """Groups of ``size`` positions, drawn one after the other.

    Args:
        size: D, the number of adapted weights.
        d: the number of groups, 1 to ``size`` and below 2^28.
        seed: their ``proj_seed``; the generator takes its lower 32 bits.

    Raises:
        GPartError: if a number is outside its range.

    Example:
        >>> MaterializedGroups(size=64, d=7, seed=42).groups(0, 10).tolist()
        [1, 2, 4, 5, 4, 3, 5, 5, 0, 0]
    """

    size: int
    d: int
    seed: int
    _states: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)

    indices: ClassVar[Literal["stored"]] = "stored"

    def __post_init__(self) -> None:
        check_numbers(self.size, self.d, self.seed)
        if self.d >= _MOST:
            raise GPartError(f"d must be below 2^28 = {_MOST} for authors-materialized, got d={self.d}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.size, self.d, self.seed)

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
        """The group indices of positions ``start`` to ``stop - 1``, as :meth:`gpart.partition.Partition.groups`.

        Raises:
            GPartError: if the range is not within 0 to ``size``, or torch's generator is another one.
        """
        stop = check_range(start, stop, self.size)
        if torch.device(device).type == "meta":
            return torch.empty(stop - start, dtype=dtype, device=device)
        _check_generator()
        out = torch.empty(stop - start, dtype=dtype, device=_CPU)
        for number in range(start // _STRETCH, -(-stop // _STRETCH)):
            first = number * _STRETCH
            drawn = self._draw(number, min(_STRETCH, stop - first))
            inside = drawn[max(start - first, 0) :]
            at = max(first, start) - start
            out[at : at + inside.numel()] = inside
        return out.to(device)

    def sizes(self) -> Tensor:
        """The group sizes n_j, shape (d,), int64, by one pass over all positions."""
        return count_groups(self)

    def _draw(self, number: int, count: int) -> Tensor:
        """The first group indices of a stretch."""
        generator = torch.Generator(_CPU)
        known = max((one for one in list(self._states) if one <= number), default=None)
        if known is None:
            known = 0
            self._states[0] = generator.manual_seed(self.seed).get_state()
        generator.set_state(self._states[known])
        for passed in range(known, number):
            _randint(self.d, _STRETCH, generator)
            self._states[passed + 1] = generator.get_state()
        drawn = _randint(self.d, count, generator)
        if count == _STRETCH:
            self._states[number + 1] = generator.get_state()
        return drawn


def _randint(d: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, d, (count,), generator=generator, dtype=torch.int32, device=_CPU)


@cache
def _check_generator() -> None:
    """Checks that torch draws the numbers that files of this scheme were made with.

    Raises:
        GPartError: if not.
    """
    d, wanted = 1_000_003, 4_123_659_995  # ISO C++, [rand.predef]
    found = int(_randint(d, 10_000, torch.Generator(_CPU).manual_seed(5489))[-1])
    if found != wanted % d:
        raise GPartError(
            f"authors-materialized needs the generator MT19937, and torch {torch.__version__} draws another's numbers:"
            f" {found} in place of {wanted % d}"
        )
