"""One forward pass as a scope: within it each adapted weight is computed once, with one dropout mask.

Invariants: outside every scope nothing is kept, so a value never outlives the forward pass, or the layer, that it was
computed for. What is given again follows one rule, :class:`gpart.materialize.cache.Store`.

A layer's weight is computed at every read of the attribute, and some layers read it several times (MultiheadAttention 3
to 5 times; a tied embedding is read by two layers). A scope opens when a hooked module is entered and closes when the
outermost one is left. The hooked modules are the layers and all that contains them, so that ``model.encoder(x)`` is a
scope just as ``model(x)`` is.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn

from gpart.materialize.cache import Store
from gpart.materialize.plain import is_followed
from gpart.ops.apart import apart

_TAGS_KEPT = 1 << 16
_CALL = nn.Module._call_impl.__code__
_numbers = itertools.count()


class ForwardScope(threading.local):
    """The forward pass under way in this thread; a copy of the model starts without one.

    Args:
        tags: shared by all threads, each of which runs ``__init__`` anew with the same arguments: on a GPU the backward
            pass, and with it the recomputation of a checkpointed region, runs in a thread of autograd's own.
    """

    def __init__(self, tags: OrderedDict[tuple[str, int], int]) -> None:
        self.open: list[int] = []  # the modules that are being run, outermost first
        self.number: int | None = None  # of the forward pass under way; no two have the same
        self.values = Store()
        self.masks: dict[str, int] = {}
        self.tags = tags

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardScope:
        copy = memo[id(self)] = type(self)(OrderedDict())
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (OrderedDict(),)

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook."""
        if torch.compiler.is_compiling() and is_followed() and not module.training:
            return  # export warns of what it sees changed, and without dropout nothing is kept here
        if id(module) in self.open and not _calls_itself(module):
            # It was left by what torch calls no hook for, such as Ctrl-C in a notebook that then goes on.
            self.open.clear()
            self._clear()
        if not self.open and not torch.compiler.is_compiling():  # a count would be compiled anew at every step
            self.number = next(_numbers)
        self.open.append(id(module))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook, called also when the forward pass raises an Exception."""
        if not self.open:
            return
        if self.open[-1] == id(module):
            self.open.pop()
        # Where another pre-hook raises before ours has run, only this one of the two is called.
        elif id(module) in self.open:
            del self.open[len(self.open) - 1 - self.open[::-1].index(id(module)) :]
        if not self.open:
            self._clear()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it values are kept as in a forward pass: what all weights start from is computed once for all of them."""
        token = object()
        self.open.append(id(token))
        try:
            yield
        finally:
            self.open = [one for one in self.open if one != id(token)]
            if not self.open:
                self._clear()

    def _clear(self) -> None:
        self.number = None
        self.values.clear()
        self.masks.clear()

    def mask_seed(self, key: str, followed: bool = False) -> int:
        """The seed of this weight's dropout mask in the forward pass under way; called at every read.

        Every read draws a tag from torch's generator, as ``F.dropout`` would draw a mask, and the first read's tag is
        the seed. Gradient checkpointing runs a region again with the generator put back: the same tag is drawn, and
        :attr:`tags` leads from a later read's tag to the seed of its forward pass, also where the first read was in
        another region and where several forward passes are pending.

        Args:
            key: the weight.
            followed: whether torch follows operations here, which it is not to do with this one.
        """
        tag = apart(_draw) if followed else _draw()
        seed = self.masks[key] if key in self.masks else self.tags.get((key, tag), tag)
        if self.open:
            self.masks[key] = seed
        if seed != tag:
            self.tags[key, tag] = seed
            while len(self.tags) > _TAGS_KEPT:
                self.tags.popitem(last=False)
        return seed


def _calls_itself(module: nn.Module) -> bool:
    """Whether a module that is being entered is being run further out as well, as a recursive one is."""
    if torch.compiler.is_compiling():
        return False
    calls = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and calls < 2:
        calls += frame.f_code is _CALL and frame.f_locals["self"] is module
        frame = frame.f_back
    return calls > 1


def _draw() -> int:
    return int(torch.randint(1 << 62, (), device="cpu"))
