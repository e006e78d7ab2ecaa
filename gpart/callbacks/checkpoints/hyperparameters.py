"""What a checkpoint may hold so that ``torch.load(weights_only=True)`` reads it again without running code.

Invariant: what :func:`loadable` returns, that reader accepts; a value is converted only where the loaded one serves in
its place without anyone noticing. What holds anything else is not converted in part, but written as Lightning writes it.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_TORCH = (torch.Tensor, torch.nn.Parameter, torch.Size, torch.dtype, torch.device)


class NotPlainError(ValueError):
    """A value has no plain equal, so that its file takes ``weights_only=False``; the message has its place and type."""


def loadable(value: Any, where: str = "checkpoint") -> Any:
    """A checkpoint, or a value in one, made of what ``weights_only`` reads.

    Converted: paths to str, numpy numbers to Python's, numpy arrays to tensors, members of str- and int-enums to their
    str or int, subclasses of dict, list, str, int, float and Tensor to those. Tensors are passed on, not copied.

    Args:
        value: the value.
        where: its name in messages.

    Raises:
        NotPlainError: if something has no plain equal (an object, a function, a plain Enum), with its place and type.

    Example:
        >>> loadable({"path": PurePath("a/b"), "lr": np.float32(0.5)})
        {'path': 'a/b', 'lr': 0.5}
        >>> loadable({"hyper_parameters": {"config": object()}})
        Traceback (most recent call last):
            ...
        gpart.callbacks.checkpoints.hyperparameters.NotPlainError: checkpoint['hyper_parameters']['config'] is of type builtins.object
    """
    if type(value) in _PLAIN or type(value) in _TORCH or _registered(type(value)):
        return value
    if isinstance(value, (OrderedDict, Counter)) and type(value) in (OrderedDict, Counter):
        return type(value)({_key(key, where): loadable(item, f"{where}[{key!r}]") for key, item in value.items()})
    if isinstance(value, Mapping):
        return {_key(key, where): loadable(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        items = [loadable(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else set(items) if isinstance(value, set) else tuple(items)
    if isinstance(value, enum.Enum):
        # A str- or int-enum equals its value; a plain one would compare unequal in silence.
        if isinstance(value, (str, int, float)):
            return loadable(value.value, where)
    elif isinstance(value, PurePath):
        return str(value)
    elif isinstance(value, torch.Tensor):
        return value.as_subclass(torch.Tensor)
    elif isinstance(value, np.generic) and not isinstance(value.item(), np.generic):  # a longdouble's item is itself
        return loadable(value.item(), where)
    elif type(value) is np.ndarray and value.dtype.kind in "biuf":
        with suppress(TypeError, ValueError):  # torch has no such dtype, or not in this byte order
            return torch.from_numpy(value.copy())
    else:
        for kind in (int, float, str):
            if isinstance(value, kind):
                return kind(value)
    raise NotPlainError(f"{where} is of type {type(value).__module__}.{type(value).__qualname__}")


def _key(key: Any, where: str) -> Any:
    return loadable(key, f"a key of {where}")


def _registered(kind: type) -> bool:
    """Whether the user has allowed this type to torch."""
    return any(
        kind is (entry[0] if isinstance(entry, tuple) else entry) for entry in torch.serialization.get_safe_globals()
    )
