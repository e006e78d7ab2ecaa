"""One forward pass as a scope: within it each adapted weight is computed once, with one dropout mask.

Invariant: outside every scope nothing is kept, so a value never outlives the forward pass that it was computed in.

``torch.nn.utils.parametrize`` computes the weight at every read of the attribute, and some layers read it several
times (MultiheadAttention 3 to 5 times; a tied embedding is read by two layers). A scope opens when a hooked module is
entered and closes when the outermost one is left. The hooked modules are the layers and all that contains them, so
that ``model.encoder(x)`` is a scope just as ``model(x)`` is.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

_TAGS_KEPT = 1 << 16
_numbers = itertools.count()
Versions = tuple[tuple[int, int | None, torch.device, torch.dtype], ...]
"""Of each tensor, what tells it from what it was."""


class ForwardScope(threading.local):
    """The values of the forward pass under way in this thread; a copy of the model starts with an empty one.

    Args:
        tags: shared by all threads, each of which runs ``__init__`` anew with the same arguments: on an accelerator the
            backward pass, and with it the recomputation of a checkpointed region, runs in a thread of autograd's own.
    """

    def __init__(self, tags: OrderedDict[tuple[str, int], int]) -> None:
        self.open: list[int] = []  # the modules that are being run, outermost first
        self.number: int | None = None  # of the forward pass under way; no two have the same
        self.values: dict[Hashable, tuple[Versions, Tensor]] = {}
        self.masks: dict[str, int] = {}
        self.tags = tags

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardScope:
        copy = memo[id(self)] = type(self)(OrderedDict())
        return copy

    @property
    def depth(self) -> int:
        """How many hooked modules are being run, one within the other."""
        return len(self.open)

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook."""
        if id(module) in self.open:
            # It was left by what torch calls no hook for, such as Ctrl-C in a notebook that then goes on.
            self.open.clear()
            self._clear()
        if not self.open and not torch.compiler.is_compiling():  # a count would be compiled anew at every step
            self.number = next(_numbers)
        self.open.append(id(module))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook, called also when the forward pass raises an Exception."""
        # Where another pre-hook raises before ours has run, only this one of the two is called.
        if id(module) in self.open:
            del self.open[self.open.index(id(module)) :]
        if not self.open:
            self._clear()

    def _clear(self) -> None:
        self.number = None
        self.values.clear()
        self.masks.clear()

    def get(self, key: str, sources: tuple[Tensor, ...]) -> Tensor | None:
        """The value computed in this scope, unless one of the tensors it was computed from has changed since.

        A value computed without gradient is not given to a reader who needs one (re-entrant checkpointing runs its
        region without, and a layer outside it may read the same weight); the other way round it serves.
        """
        modes = [True] if torch.is_grad_enabled() else [False, True]
        for mode in modes:
            found = self.values.get((key, mode))
            if found is not None and found[0] == versions(sources):
                return found[1]
        return None

    def put(self, key: str, sources: tuple[Tensor, ...], value: Tensor) -> Tensor:
        """Keeps a value for the rest of the scope, if there is one."""
        if self.open:
            self.values[key, torch.is_grad_enabled()] = (versions(sources), value)
        return value

    def mask_seed(self, key: str) -> int:
        """The seed of this weight's dropout mask in the forward pass under way; called at every read.

        Every read draws a tag from torch's generator, as ``F.dropout`` would draw a mask, and the first read's tag is
        the seed. Gradient checkpointing runs a region again with the generator put back: the same tag is drawn, and
        :attr:`tags` leads from a later read's tag to the seed of its forward pass, also where the first read was in
        another region and where several forward passes are pending.
        """
        tag = int(torch.randint(1 << 62, (), device="cpu"))
        seed = self.masks[key] if key in self.masks else self.tags.get((key, tag), tag)
        if self.open:
            self.masks[key] = seed
        if seed != tag:
            self.tags[key, tag] = seed
            while len(self.tags) > _TAGS_KEPT:
                self.tags.popitem(last=False)
        return seed


def versions(sources: tuple[Tensor, ...]) -> Versions:
    """What changes when a tensor is written in place, replaced, moved or cast (``.to`` changes a parameter's data)."""
    if torch.compiler.is_compiling():
        return ()  # a compiled forward pass is one function of its inputs, and the question would break its graph
    return tuple(
        (id(source), None if source.is_inference() else source._version, source.device, source.dtype)
        for source in sources
    )
