"""Tensors that are not plain ones: packed weights of torchao, sharded ones, shared ones.

Invariant: what an operation computes with is a plain tensor of the weight's logical numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn


def is_packed(weight: Tensor) -> bool:
    """Whether a weight is one of torchao's, which has a shape and a floating dtype but keeps fewer bits.

    >>> is_packed(torch.ones(2))
    False
    """
    if type(weight) is Tensor or type(weight) is nn.Parameter:
        return False  # without the walk below, which torch.compile cannot follow
    # By the module's name: torchao is an optional library, and only a weight of its making is asked.
    return any(kind.__module__.partition(".")[0] == "torchao" for kind in type(weight).__mro__)


def dense(weight: Tensor) -> Tensor:
    """A weight's numbers as a plain tensor: the weight itself, or a packed one's values in its dtype."""
    if type(weight) is Tensor or type(weight) is nn.Parameter:
        return weight
    return weight.dequantize() if is_packed(weight) else weight


def whole(weight: Tensor) -> Tensor:
    """A sharded weight (DTensor) put together, by all ranks at once; any other as it is.

    >>> value = torch.ones(2)
    >>> whole(value) is value
    True
    """
    gather = getattr(weight, "full_tensor", None)  # by what it can do: torch.distributed is no part of the core
    return weight if gather is None else gather()


def in_one_memory(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """The pairs of tensors that have a byte in common, by name.

    A tensor that is part of another one's storage and apart from it, as those of recurrent layers on a GPU, has none.

    Args:
        tensors: by name; packed and sharded ones, and those on the meta device, are left out.

    Example:
        >>> whole = torch.zeros(4, 4)
        >>> list(in_one_memory({"left": whole[:, :2], "right": whole[:, 2:], "row": whole[1]}))
        [('left', 'row'), ('right', 'row')]
    """
    spans = []
    for name, value in tensors.items():
        if (
            type(value) not in (Tensor, nn.Parameter)
            or value.layout != torch.strided
            or value.is_meta
            or not value.numel()
        ):
            continue
        width, start = value.element_size(), value.data_ptr()
        last = sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
        spans.append((str(value.device), start, start + (last + 1) * width, name))
    before: list[tuple[str, int, int, str]] = []
    for device, start, stop, name in sorted(spans):
        before = [other for other in before if other[0] == device and other[2] > start]
        for _, first, end, other in before:
            length = max(stop, end) - first
            filled = all(tensors[one].nbytes == size for one, size in ((other, end - first), (name, stop - start)))
            if filled or (_bytes_of(tensors[other], 0, length) & _bytes_of(tensors[name], start - first, length)).any():
                yield other, name
        before.append((device, start, stop, name))


def _bytes_of(value: Tensor, offset: int, length: int) -> Tensor:
    """Which of so many bytes are a tensor's that begins at one of them."""
    found, width = torch.zeros(length, dtype=torch.bool), value.element_size()
    steps = [step * width for step in value.stride()]
    found.as_strided((*value.shape, width), (*steps, 1), offset).fill_(True)
    return found


def entries_of(state: Mapping[str, Tensor], tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """The entries of a ``state_dict(keep_vars=True)`` that are these very tensors: a shared one has several keys."""
    same = {id(tensor) for tensor in tensors}
    return {key: value for key, value in state.items() if id(value) in same}


def has_gradient(value: Tensor) -> bool:
    """Whether torch can train numbers of this kind: real or complex ones, no whole ones.

    >>> has_gradient(torch.ones(1, dtype=torch.complex64)), has_gradient(torch.ones(1, dtype=torch.int64))
    (True, False)
    """
    return value.is_floating_point() or value.is_complex()


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit: NaN equals NaN but not 0, and 0 is not -0.

    >>> same_bits(torch.tensor([0.0]), torch.tensor([-0.0])), same_bits(torch.tensor(float("nan")), torch.tensor(float("nan")))
    (False, True)
    """
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(*(value.detach().contiguous().reshape(-1).view(torch.uint8) for value in (first, second)))
