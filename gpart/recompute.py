"""Adapted weights that are computed again in the backward pass instead of being kept for it.

Invariant: autograd gets the very numbers of the forward pass: they come from the same theta, W0 and mask, and where W0
was written to in between it is told so, as for any saved tensor.

While a layer runs, a saved-tensor hook replaces its adapted weight, or a view of it such as the transpose that a matrix
product saves, by what is needed to compute it. Everything else that the layer saves passes through. Where a hook of
someone else's is at work (activation checkpointing, offloading), ours stays away: the region is computed again anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gpart.scope import Versions, versions


@dataclass(frozen=True)
class _Saved:
    """A tensor as it was; torch does not look at its version itself where there is a hook."""

    tensor: Tensor
    version: Versions

    def get(self) -> Tensor:
        if versions((self.tensor,)) != self.version:
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


@dataclass
class _Frame:
    """A layer that is being run."""

    module: int
    hooks: saved_tensors_hooks | None
    values: dict[tuple[str, bool], tuple[Versions, Tensor]] = field(default_factory=dict)
    again: dict[int, Callable[[], Tensor]] = field(default_factory=dict)  # by storage, which a value above holds


class Recomputation(threading.local):
    """The layers that are being run in this thread, outermost first; a copy of the model starts without any."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        """Whether the layers' weights are to be computed again; where not, a hook costs its call alone."""
        self.frames: list[_Frame] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Recomputation:
        copy = memo[id(self)] = type(self)(self.wanted)
        return copy

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook of a layer."""
        if torch.compiler.is_compiling() or not self.wanted:
            return
        if any(frame.module == id(module) for frame in self.frames):
            # It was left by what torch calls no hook for, such as Ctrl-C in a notebook that then goes on.
            self._leave_to(0)
        hooks = None
        if torch.is_grad_enabled() and not _others_hook():
            frame_again: dict[int, Callable[[], Tensor]] = {}
            hooks = saved_tensors_hooks(lambda tensor: _pack(tensor, frame_again), _unpack)
            hooks.__enter__()
            self.frames.append(_Frame(id(module), hooks, again=frame_again))
        else:
            self.frames.append(_Frame(id(module), None))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook, called also when the forward pass raises an Exception."""
        found = [number for number, frame in enumerate(self.frames) if frame.module == id(module)]
        if found:  # where another pre-hook raises before ours has run, only this one of the two is called
            self._leave_to(found[0])

    def _leave_to(self, depth: int) -> None:
        while len(self.frames) > depth:
            frame = self.frames.pop()
            frame.again.clear()
            if frame.hooks is not None:
                frame.hooks.__exit__()

    def get(self, key: str, sources: tuple[Tensor, ...]) -> Tensor | None:
        """What was computed while the innermost layer has been running."""
        if not self.frames:
            return None
        for mode in [True] if torch.is_grad_enabled() else [False, True]:
            found = self.frames[-1].values.get((key, mode))
            if found is not None and found[0] == versions(sources):
                return found[1]
        return None

    def put(
        self,
        key: str,
        sources: tuple[Tensor, ...],
        value: Tensor,
        compute: Callable[[], Tensor],
        held: tuple[Tensor, ...],
    ) -> Tensor:
        """Keeps a value while the layer runs, and what it takes to compute it again for the backward pass.

        Args:
            key: the weight.
            sources: the value is given again in this layer only as long as these are as they are.
            value: W.
            compute: the same once more, without gradient.
            held: what ``compute`` reads and others may write to.

        Raises:
            RuntimeError: in the backward pass, if one of ``held`` was written to.
        """
        if self.frames:
            frame = self.frames[-1]
            saved = [_Saved(tensor, versions((tensor,))) for tensor in held]

            def again() -> Tensor:
                for tensor in saved:
                    tensor.get()
                with torch.no_grad():
                    return compute()

            frame.values[key, torch.is_grad_enabled()] = (versions(sources), value)
            frame.again[value.untyped_storage()._cdata] = again
        return value


def _pack(tensor: Tensor, again: dict[int, Callable[[], Tensor]]) -> _Saved | _Again:
    compute = again.get(tensor.untyped_storage()._cdata)
    if compute is None:
        return _Saved(tensor, versions((tensor,)))
    return _Again(compute, tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def _unpack(saved: _Saved | _Again) -> Tensor:
    return saved.get()


def _others_hook() -> bool:
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(True) is not None  # its argument has no name
