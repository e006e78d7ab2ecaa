"""W0 + P·theta kept from one forward pass to the next, in memory that is used again.

Invariant: a kept value is given only as long as theta and W0 are what it was computed from, and its memory is written
again only when nobody else holds it: neither a graph whose backward pass is still to come nor the user.

Where theta has changed, the first weight that is asked for has all others computed with it that were read under the theta
before: one after the other they take less time than between the layers, where code and data have left the caches.

A change is told by the tensors' version counters. Theta is compared number by number as well, once in each forward pass,
or once within :meth:`Kept.__enter__` (an evaluation), since optimizers that write through ``.data`` leave no trace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpart.scope import Versions, versions

_use_count = getattr(torch._C, "_storage_Use_Count", None)


Compute = Callable[[Tensor, Tensor, Tensor], object]
"""Writes W0 + P·theta into its first argument, from theta and W0."""


@dataclass
class _Value:
    tensor: Tensor
    alone: int
    """Its storage's use count while nobody else holds it."""
    source: tuple[int, int | None, Versions] | None = None
    """What it was computed from: theta's number, the mask's seed, W0's version; and its own version since."""
    standing: tuple[int, Versions] | None = None
    """The evaluation that it was given in, and the versions of theta, W0 and itself then."""
    renewal: tuple[Tensor, Compute] | None = None
    """W0 and how to compute it for another theta, where it has been read since it was computed last."""

    def compute(self, compute: Compute, theta: Tensor, base: Tensor, number: int, seed: int | None) -> None:
        """Computes it in its memory."""
        self.source = self.standing = None  # in case computing is broken off
        compute(self.tensor, theta, base)
        self.source = (number, seed, versions((base, self.tensor)))


class Kept:
    """The values by weight; a copy of the model starts without any."""

    def __init__(self) -> None:
        self.open = 0  # evaluations within each other
        self._evaluation = 0  # counts the outermost ones down, so that no number is a forward pass's
        self.values: dict[str, _Value] = {}
        self._theta: Tensor | None = None
        self._theta_versions: Versions = ()
        self._theta_number = 0  # counts the thetas that were seen
        self._ahead_of = 0  # the theta that all values were computed for last
        self._compared_in: int | None = None  # the forward pass or evaluation in which theta was compared last
        self._lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        copy = memo[id(self)] = type(self)()
        return copy

    def __enter__(self) -> None:
        self._evaluation -= self.open == 0
        self.open += 1

    def __exit__(self, *error: object) -> None:
        self.open -= 1

    def clear(self) -> None:
        """Gives the memory back."""
        with self._lock:
            self.values.clear()
            self._theta = None

    def value(
        self,
        key: str,
        theta: Tensor,
        base: Tensor,
        seed: int | None,
        forward: int | None,
        compute: Compute,
    ) -> Tensor:
        """W0 + P·theta, computed by ``compute`` unless it is there; without gradient.

        Args:
            key: the weight.
            theta: as it is now.
            base: W0.
            seed: the dropout mask's, if there is one.
            forward: number of the forward pass under way, if there is one.
            compute: writes the value into a contiguous tensor of W0's shape and dtype; without a seed it is kept.

        Returns:
            The kept tensor itself: not to be written to, and not to be given away but as a detached view.
        """
        with self._lock, torch.no_grad():
            number = self._number(theta, forward)
            found = self.values.get(key)
            # Not by a weak reference to W0: torch.utils.swap_tensors, which .to() uses, refuses tensors that have one.
            renewal = (base, compute) if seed is None else None
            if found is not None and found.source == (number, seed, versions((base, found.tensor))):
                found.renewal = renewal
                return self._stands(found, theta, base, seed)
            if found is None or not _can_be_written(found, base):
                # An inference tensor could not be saved for a later backward pass.
                with torch.inference_mode(mode=False):
                    tensor = torch.empty(base.shape, dtype=base.dtype, device=base.device)
                found = self.values[key] = _Value(tensor, _count(tensor))
            found.compute(compute, theta, base, number, seed)
            found.renewal = renewal
            if seed is None and number != self._ahead_of:
                self._ahead_of = number
                self._compute_ahead(theta, number)
            return self._stands(found, theta, base, seed)

    def again(self, key: str, theta: Tensor, base: Tensor) -> Tensor | None:
        """What :meth:`value` gave within this evaluation, if it would give it again; the quick way, without dropout."""
        found = self.values.get(key) if self.open else None
        if found is None or found.standing != (self._evaluation, versions((theta, base, found.tensor))):
            return None
        return found.tensor

    def _compute_ahead(self, theta: Tensor, number: int) -> None:
        for value in self.values.values():
            if value.renewal is None or value.source is None or value.source[0] == number:
                continue
            base, compute = value.renewal
            # What was written to, or is held, is left to its own reader.
            if value.source[2] == versions((base, value.tensor)) and _can_be_written(value, base):
                value.compute(compute, theta, base, number, None)
                value.renewal = None  # until it is read

    def _stands(self, found: _Value, theta: Tensor, base: Tensor, seed: int | None) -> Tensor:
        if self.open and seed is None:
            found.standing = (self._evaluation, versions((theta, base, found.tensor)))
        return found.tensor

    def _number(self, theta: Tensor, forward: int | None) -> int:
        """A number for theta as it is now; another one for other values."""
        now = versions((theta,))
        now_in = self._evaluation if self.open else forward
        trusted = now_in is not None and now_in == self._compared_in
        if self._theta is None or now != self._theta_versions or not (trusted or torch.equal(theta, self._theta)):
            self._theta, self._theta_versions = theta.detach().clone(), now
            self._theta_number += 1
        self._compared_in = now_in
        return self._theta_number


def _count(tensor: Tensor) -> int:
    return 0 if _use_count is None else int(_use_count(tensor.untyped_storage()._cdata))


def _can_be_written(found: _Value, base: Tensor) -> bool:
    like = (found.tensor.shape, found.tensor.dtype, found.tensor.device) == (base.shape, base.dtype, base.device)
    # Without the count (it is torch's own, for CUDA graphs) memory is never used again.
    return like and 0 < _count(found.tensor) <= found.alone
