"""When torch follows what a model does, and a layer has to read W0 + P·theta by plain operations.

Following is what function transforms (``torch.func``), forward-mode differentiation, tracing, export and fake tensors do:
the tensors that go through the model stand for others, so that nothing may be written to memory and nothing be kept.
``torch.compile`` is another matter, see :mod:`gpart.ops.compiled`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

# Each is asked at every read of a weight: a call of a C function, a look at a number.
_transforming = torch._C._are_functorch_transforms_active
_tracing = torch._C._is_tracing
_count_modes = torch._C._len_torch_dispatch_stack
_mode = torch._C._get_dispatch_mode
_Mode = torch._C._TorchDispatchModeKey

_DENSE = (nn.Parameter, Tensor)


def is_followed(*tensors: Tensor) -> bool:
    """Whether torch follows operations in this thread, or any on these tensors.

    Example:
        >>> is_followed(), torch.func.vmap(lambda x: x * is_followed())(torch.ones(2))
        (False, tensor([1., 1.]))
    """
    if torch.compiler.is_compiling():
        return bool(torch.compiler.is_exporting())
    if _transforming() or _tracing() or forward_ad._current_level >= 0:
        return True
    # A mode that only watches, such as a counter of operations or selective checkpointing, follows nothing.
    if _count_modes() and any(_mode(mode) is not None for mode in (_Mode.FAKE, _Mode.PROXY, _Mode.FUNCTIONAL)):
        return True
    for tensor in tensors:  # noqa: SIM110  # a generator takes as long as all else here
        if type(tensor) not in _DENSE and _is_fake(tensor):
            return True
    return False


def is_recorded() -> bool:
    """Whether what is followed becomes a program that runs later, as by tracing and export."""
    return bool(torch.compiler.is_compiling() or _tracing() or _mode(_Mode.PROXY) is not None)


def is_hollow(tensor: Tensor) -> bool:
    """Whether only the shape of what comes of a tensor here counts: it is on the meta device, or stands for another."""
    return tensor.is_meta or (not is_recorded() and (_is_fake(tensor) or _mode(_Mode.FAKE) is not None))


def _is_fake(tensor: Tensor) -> bool:
    return getattr(tensor, "fake_mode", None) is not None  # its class is not imported with torch
