"""The live module's state, by the names that files have and by the keys that the module itself reads and writes.

Invariant: a file has plain names, whatever wraps the modules (``torch.compile``); what a module's own ``state_dict`` leaves
out or names otherwise is left out and named so in its files.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gpart.injection.names import plain_name
from gpart.injection.tensors import entries_of

_FRAMEWORKS = ("torch", "lightning", "pytorch_lightning")


def overrides(module: nn.Module, method: str) -> bool:
    """Whether a module's method is not torch's or Lightning's.

    >>> overrides(nn.Linear(2, 2), "state_dict")
    False
    """
    found = inspect.unwrap(getattr(module, method))
    return getattr(found, "__module__", "").partition(".")[0] not in _FRAMEWORKS


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that torch would save, themselves, by their plain names."""
    return {plain_name(key): value for key, value in _own_state(module).items()}


def named_by(module: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """By each key of the module's state_dict, the plain name and the very parameter or buffer that it stands for."""
    own = _own_state(module)
    if not overrides(module, "state_dict"):
        return {key: (plain_name(key), value) for key, value in own.items()}
    known = {_place(value): (plain_name(key), value) for key, value in own.items()}
    return {
        key: (plain_name(key), own[key]) if key in own else known.get(_place(value), (plain_name(key), value))
        for key, value in module.state_dict().items()
    }


def entries(named: Mapping[str, tuple[str, Tensor]], tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """The entries of :func:`named_by` that are these very tensors; a shared one has several keys."""
    return entries_of({key: value for key, (_, value) in named.items()}, tensors)


def _own_state(module: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Tensor] = nn.Module.state_dict(module, keep_vars=True)
    return state


def _place(value: Any) -> object:
    """What tells a tensor from others, though it was detached."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or not value.numel():
        return id(value)
    try:
        return value.data_ptr(), value.dtype, value.shape, value.stride()
    except RuntimeError:  # of no memory of its own: packed, sharded
        return id(value)
