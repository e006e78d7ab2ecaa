"""Memory for a stretch's temporaries that is used again: fresh memory costs more than the arithmetic, a page fault at a time.

Invariant: what stands in it is one pass's own, in one thread; nothing that outlives the pass shares it.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn


class _Room(threading.local):
    def __init__(self) -> None:
        self.tensors: dict[torch.dtype, Tensor] = {}


_room = _Room()


def room(count: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Memory for ``count`` numbers on the device of ``like``; what stands in it is arbitrary.

    Args:
        count: at most a stretch, see :func:`gpart.partition.stretch_size`.
        dtype: the next call in this thread with the same one gives the same memory on a CPU.
        like: what the temporary is for.

    Returns:
        Shape (count,).
    """
    # An accelerator's allocator keeps memory itself; a subclass, as torch's fake tensors, makes tensors of its own.
    if like.device.type != "cpu" or type(like) not in (Tensor, nn.Parameter):
        return torch.empty(count, dtype=dtype, device=like.device)
    kept = _room.tensors.get(dtype)
    if kept is None or kept.numel() < count:
        with torch.inference_mode(mode=False):  # else it could not be written to outside
            kept = _room.tensors[dtype] = torch.empty(count, dtype=dtype, device=like.device)
    return kept[:count]
