"""Tensors that are not plain ones: packed weights of torchao, sharded ones, shared ones.

Invariant: what an operation computes with is a plain tensor of the weight's logical numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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
