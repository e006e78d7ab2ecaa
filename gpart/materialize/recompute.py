"""Adapted weights that are computed again in the backward pass instead of being kept for it.

Invariant: autograd gets the very numbers of the forward pass: they come from the same theta, W0 and mask, and where W0
was written to in between it is told so, as for any saved tensor.

While a layer runs, a saved-tensor hook replaces its adapted weight, or a view of it such as the transpose that a matrix
product saves, by what is needed to compute it. Everything else that the layer saves passes through. Where a hook of
someone else's is at work (activation checkpointing, offloading), ours stays away: the region is computed again anyway.
Autocast gives a linear layer a copy of its weight in half the width, which the layer would save. So that copy is made here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gpart.materialize.cache import Store, Versions

Version = tuple[int | None, torch.device, torch.dtype]


@dataclass(frozen=True)
class _Saved:
    """A tensor as it was; torch does not look at its version itself where there is a hook."""

    tensor: Tensor
    version: Version

    def get(self) -> Tensor:
        if _version(self.tensor) != self.version:
            raise RuntimeError(
                f"a tensor of shape {list(self.tensor.shape)} that is needed for the gradient was modified in place after"
                " the forward pass"
            )
        return self.tensor


@dataclass(frozen=True)
class _Again:
    """A view of an adapted weight, to be computed again."""

    compute: Callable[[], Tensor]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def get(self) -> Tensor:
        return self.compute().as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True)
class _Adapted:
    """An adapted weight that a layer has read; held, so that its memory is no other tensor's while the layer runs."""

    value: Tensor
    version: Version
    compute: Callable[[], Tensor]


@dataclass
class _Layer:
    """A layer that is being run."""

    module: int
    hooks: saved_tensors_hooks | None
    linear: bool
    """Whether it does with its weight what ``nn.Linear`` does, one product, and nothing else."""
    values: Store = field(default_factory=Store)
    again: dict[int, _Adapted] = field(default_factory=dict)  # by storage


class Recomputation(threading.local):
    """The layers that are being run in this thread, outermost first; a copy of the model starts without any."""

    def __init__(self) -> None:
        self.layers: list[_Layer] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Recomputation:
        copy = memo[id(self)] = type(self)()
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def enter(self, module: nn.Module) -> None:
        """Before a layer runs whose weights are to be computed again."""
        if any(layer.module == id(module) for layer in self.layers):
            # It was left by what torch calls no hook for, such as Ctrl-C in a notebook that then goes on.
            self._leave_to(0)
        layer = _Layer(id(module), None, getattr(module.forward, "__func__", None) is nn.Linear.forward)
        if torch.is_grad_enabled() and not _others_hook():
            again = layer.again
            layer.hooks = saved_tensors_hooks(lambda tensor: _pack(tensor, again), _unpack)
            layer.hooks.__enter__()
        self.layers.append(layer)

    def leave(self, module: nn.Module) -> None:
        """After it, also when the forward pass raises an Exception."""
        found = [number for number, layer in enumerate(self.layers) if layer.module == id(module)]
        if found:  # where another pre-hook raises before ours has run, only this one of the two is called
            self._leave_to(found[0])

    def _leave_to(self, depth: int) -> None:
        while len(self.layers) > depth:
            layer = self.layers.pop()
            layer.again.clear()
            if layer.hooks is not None:
                layer.hooks.__exit__()

    def get(self, key: str, sources: Versions) -> Tensor | None:
        """What was computed while the innermost layer has been running."""
        return self.layers[-1].values.get(key, sources) if self.layers else None

    def put(
        self,
        key: str,
        sources: Versions,
        value: Tensor,
        compute: Callable[[], Tensor],
        held: Tensor,
    ) -> Tensor:
        """Keeps a value while the layer runs, and what it takes to compute it again for the backward pass; returns it.

        A linear layer under autocast gets it in autocast's dtype, to which autocast would cast it.

        Args:
            key: the weight.
            sources: the value is given again in this layer only to one whose sources are these.
            value: W.
            compute: the same once more, without gradient.
            held: what ``compute`` reads and others may write to.

        Raises:
            RuntimeError: in the backward pass, if ``held`` was written to.
        """
        if self.layers:
            layer = self.layers[-1]
            if layer.hooks is not None:
                saved = _Saved(held, _version(held))
                if layer.linear:
                    value = _as_autocast_does(value)
                dtype = value.dtype

                def again() -> Tensor:
                    saved.get()
                    with torch.no_grad():
                        return compute().to(dtype)

                layer.again[value.untyped_storage()._cdata] = _Adapted(value, _version(value), again)
            layer.values.put(key, sources, value, held)
        return value


def _as_autocast_does(value: Tensor) -> Tensor:
    """The value as autocast gives it to a matrix product."""
    device = value.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return value
    return value if value.dtype == torch.float64 else value.to(torch.get_autocast_dtype(device))


def _pack(tensor: Tensor, again: dict[int, _Adapted]) -> _Saved | _Again:
    known, version = again.get(tensor.untyped_storage()._cdata), _version(tensor)
    if known is None or version != known.version:  # one that the layer has written to cannot be computed again
        return _Saved(tensor, version)
    return _Again(known.compute, tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def _version(tensor: Tensor) -> Version:
    """What tells that a tensor was written to; its numbers' place may change, as sharding puts weights together again."""
    return None if tensor.is_inference() else tensor._version, tensor.device, tensor.dtype


def _unpack(saved: _Saved | _Again) -> Tensor:
    return saved.get()


def _others_hook() -> bool:
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(True) is not None  # its argument has no name
