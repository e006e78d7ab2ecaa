"""What was computed and may be given again: by the rule of :class:`Store`, or as long as the memory of :class:`Cache` holds.

Invariants: a value is given again only while the tensors that it was computed from are unchanged. The cache's memory is
written again only when nobody else holds it: neither a graph whose backward pass is still to come nor the user.

A change is told by the tensors' version counters and by where their numbers are: ``parameter.data = tensor`` puts others in
another place. What is kept holds a weak reference to W0's storage, so that no other storage can pass for it, and its memory
can be freed all the same. The cache compares theta number by number as well, once in each forward pass, or once within
:meth:`Cache.__enter__` (an evaluation), since what writes through ``.data`` into the same place leaves no trace. For W0, which
is large and frozen, it does not.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

_Version = tuple[int, int | None, tuple[int, int, tuple[int, ...]] | torch.device, torch.dtype]
Versions = tuple[_Version, ...]
"""Of each tensor, what tells it from what it was."""

_DENSE = (nn.Parameter, Tensor)
_use_count = getattr(torch._C, "_storage_Use_Count", None)


class Store:
    """Values by name, each with the versions of the tensors that it was computed from.

    The rule: a value is given again only while those tensors are unchanged; and one computed without gradient is never
    given to a reader who needs one (re-entrant checkpointing runs its region without, and a layer outside it may read the
    same weight). The other way round it serves.
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, tuple[Versions, bool, Tensor, tuple[StorageWeakRef | None, ...]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # a copy starts without any

    def get(self, key: Hashable, sources: Versions) -> Tensor | None:
        """The value of this name, if it may be given again to one whose sources are these."""
        found = self._values.get(key)
        if found is None or found[0] != sources or (not found[1] and torch.is_grad_enabled()):
            return None
        return found[2]

    def put(self, key: Hashable, sources: Versions, value: Tensor, *tensors: Tensor) -> None:
        """Keeps a value; one with a gradient is not replaced by one without.

        Args:
            key: its name.
            sources: the versions of what it was computed from.
            value: what is kept.
            tensors: those of its sources that others may free while it is kept.
        """
        graph = torch.is_grad_enabled()
        found = self._values.get(key)
        if graph or found is None or not found[1] or found[0] != sources:
            self._values[key] = (sources, graph, value, tuple(map(place_of, tensors)))

    def clear(self) -> None:
        """Drops all values."""
        self._values.clear()

    def __len__(self) -> int:
        return len(self._values)


def versions(*sources: Tensor) -> Versions:
    """What changes when a tensor is written in place, replaced, moved or cast, or gets other ``.data``.

    Not for ``torch.compile``: a compiled forward pass is one function of its inputs, and the question breaks its graph.

    Args:
        sources: dense tensors. Of a packed one it is not seen that what it consists of has been replaced.
    """
    found: list[_Version] = []
    for source in sources:  # a loop: this is called several times for each weight, and a generator doubles its time
        count = None if source.is_inference() else source._version
        if type(source) in _DENSE:
            place = (source.data_ptr(), source.untyped_storage()._cdata, source.stride())
            found.append((id(source), count, place, source.dtype))
        else:  # it may stand for several tensors, and has no place of its own
            found.append((id(source), count, source.device, source.dtype))
    return tuple(found)


def place_of(source: Tensor) -> StorageWeakRef | None:
    """While this is held, the storage in :func:`versions` is this tensor's alone, also when it has been freed.

    Args:
        source: a dense tensor; others have no storage of their own, and give None.
    """
    if type(source) not in _DENSE:
        return None
    return StorageWeakRef(source.untyped_storage())  # type: ignore[no-untyped-call]  # torch has no types here


@dataclass
class _Kept:
    tensor: Tensor
    alone: int
    """Its storage's use count while nobody else holds it."""
    place: StorageWeakRef | None = None
    """W0's."""
    made_from: tuple[int, int | None, Versions] | None = None
    """Theta's number, the mask's seed, W0's version; and its own version since."""


class Cache:
    """The values by weight; a copy of the model starts without any."""

    def __init__(self) -> None:
        self.open = 0  # evaluations within each other
        self.values: dict[str, _Kept] = {}
        self._given = Store()  # within an evaluation: what was given in it, and is again without further questions
        self._evaluation = 0  # counts the outermost ones down, so that no number is a forward pass's
        self._theta: Tensor | None = None
        self._place: Tensor | None = None  # theta's memory, which nothing else can get while it is held here
        self._theta_versions: Versions = ()
        self._theta_number = 0  # counts the thetas that were seen
        self._compared_in: int | None = None  # the forward pass or evaluation in which theta was compared last
        self._lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        copy = memo[id(self)] = type(self)()
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def __enter__(self) -> None:
        if self.open == 0:
            self._evaluation -= 1
            self._given.clear()
        self.open += 1

    def __exit__(self, *error: object) -> None:
        self.open -= 1
        if self.open == 0:
            self._given.clear()

    def clear(self) -> None:
        """Gives the memory back."""
        with self._lock:
            self.values.clear()
            self._given.clear()
            self._theta = self._place = None

    def again(self, key: str, sources: Versions) -> Tensor | None:
        """What :meth:`value` gave without dropout within this evaluation, if it would give it again: the quick way."""
        if not self.open:
            return None
        with self._lock:
            kept = self.values.get(key)
            found = None if kept is None else self._given.get(key, sources + versions(kept.tensor))
            return None if found is None else found.detach()

    def value(
        self,
        key: str,
        theta: Tensor,
        base: Tensor,
        seed: int | None,
        forward: int | None,
        sources: Versions,
        compute: Callable[[Tensor], object],
    ) -> Tensor:
        """W0 + P·theta, computed by ``compute`` unless it is there; without gradient.

        Args:
            key: the weight.
            theta: as it is now.
            base: W0.
            seed: the dropout mask's, if there is one.
            forward: number of the forward pass under way, if there is one.
            sources: the versions of theta and W0.
            compute: writes the value into a contiguous tensor of W0's shape and dtype.

        Returns:
            A view of the kept tensor, not to be written to. While it is held no other thread writes into that memory.
        """
        with self._lock:
            number = self._number(theta, forward, sources[:1])
            kept = self.values.get(key)
            now = () if kept is None else versions(kept.tensor)
            if kept is not None and kept.made_from is not None and kept.made_from[2][-1:] != now:
                warnings.warn(
                    f"{key} was written to in place. What an adapted layer gives as its weight is computed, so this is lost:"
                    " merge() before, or write to what is stored, layer._parameters[...]",
                    stacklevel=2,
                )
            if kept is None or kept.made_from != (number, seed, sources[1:] + now):
                if kept is None or not _can_be_written(kept, base):
                    # An inference tensor could not be saved for a later backward pass.
                    with torch.inference_mode(mode=False):
                        tensor = torch.empty(base.shape, dtype=base.dtype, device=base.device)
                    kept = self.values[key] = _Kept(tensor, _count(tensor))
                kept.made_from = None  # in case computing is broken off
                with torch.no_grad():
                    compute(kept.tensor)
                kept.place, kept.made_from = place_of(base), (number, seed, sources[1:] + versions(kept.tensor))
            if self.open and seed is None:
                self._given.put(key, sources + versions(kept.tensor), kept.tensor)
            return kept.tensor.detach()

    def _number(self, theta: Tensor, forward: int | None, now: Versions) -> int:
        """A number for theta as it is now; another one for other values."""
        now_in = self._evaluation if self.open else forward
        if now_in is not None and now_in == self._compared_in and now == self._theta_versions:
            return self._theta_number
        if self._theta is None or now != self._theta_versions or not torch.equal(theta, self._theta):
            self._theta, self._place, self._theta_versions = theta.detach().clone(), theta.detach(), now
            self._theta_number += 1
        self._compared_in = now_in
        return self._theta_number


def _count(tensor: Tensor) -> int:
    return 0 if _use_count is None else int(_use_count(tensor.untyped_storage()._cdata))


def _can_be_written(kept: _Kept, base: Tensor) -> bool:
    like = (kept.tensor.shape, kept.tensor.dtype, kept.tensor.device) == (base.shape, base.dtype, base.device)
    # Without the count (it is torch's own, for CUDA graphs) memory is never used again.
    return like and 0 < _count(kept.tensor) <= kept.alone
