"""Memory for a stretch's temporaries, one buffer a dtype and thread, that is used again.

Fresh memory costs more than the arithmetic: it is fetched a page fault at a time.

Invariant: what stands in a buffer belongs to one call, in one thread; nothing that outlives the call shares it.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.tensors: dict[torch.dtype, Tensor] = {}


_buffers = _Buffers()


def scratch(count: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Memory for ``count`` numbers on the device of ``like``; what stands in it is arbitrary.

    Args:
        count: at most a stretch, see :func:`gpart.partition.stretch_size`.
        dtype: the next call in this thread with the same one gives the same memory on a CPU.
        like: what the temporary is for.

    Returns:
        Shape (count,).
    """
    # A GPU's allocator keeps memory itself; a subclass, as torch's fake tensors, makes tensors of its own.
    if like.device.type != "cpu" or type(like) not in (Tensor, nn.Parameter):
        return torch.empty(count, dtype=dtype, device=like.device)
    kept = _buffers.tensors.get(dtype)
    if kept is None or kept.numel() < count:
        with torch.inference_mode(mode=False):  # else it could not be written to outside
            kept = _buffers.tensors[dtype] = torch.empty(count, dtype=dtype, device=like.device)
    return kept[:count]
