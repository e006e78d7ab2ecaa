"""What a checkpoint may hold so that ``torch.load(weights_only=True)`` reads it again without running code.

Invariant: what :func:`loadable` returns, that reader accepts. What holds anything that has no plain equal is not
converted in part, but written as Lightning writes it. A plain equal does not serve everywhere (a dict has no attributes,
a str no ``/``), so what was converted lies in the file once more, pickled: who reads with ``weights_only=False`` gets
what Lightning would have given. Numpy's numbers and enums are left out: their equals serve, and an optimizer whose rate is a
``np.float64`` would have its state in the file twice.
"""

from __future__ import annotations

import enum
import io
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

OBJECTS_KEY = "gpart_objects"
"""Where a checkpoint has what was converted in it as it was: entries with a place, types and pickled bytes."""

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


def with_objects(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint made of what ``weights_only`` reads, with an entry for each value that was converted.

    Args:
        checkpoint: as Lightning makes it.

    Raises:
        NotPlainError: as :func:`loadable` does.
    """
    made: dict[str, Any] = loadable(checkpoint)
    entries = []
    for place, value in _places(checkpoint):
        where = "checkpoint" + "".join(f"[{key!r}]" for key in place)
        types = {at: f"{type(one).__module__}.{type(one).__qualname__}" for at, one in _converted(value, where)}
        if not types:
            continue
        with suppress(Exception):  # a class in a function: Lightning could not have written it at all
            torch.save(value, file := io.BytesIO())
            entries.append({"place": list(place), "types": types, "pickled": file.getvalue()})
    return {**made, OBJECTS_KEY: entries} if entries else made


def as_given(
    checkpoint: dict[str, Any], weights_only: bool | None, source: str, map_location: Any = None
) -> dict[str, Any]:
    """A checkpoint that was read, as Lightning would have written it: what was converted is as it was.

    Args:
        checkpoint: what was read.
        weights_only: as the reader was told; the pickled objects are read with False only, and may run any code.
        source: the file's name in messages.
        map_location: where the objects' tensors go.
    """
    if OBJECTS_KEY not in checkpoint:
        return checkpoint
    whole = {key: value for key, value in checkpoint.items() if key != OBJECTS_KEY}
    for entry in checkpoint[OBJECTS_KEY] if weights_only is False else ():
        *outer, last = entry["place"]
        try:
            value = torch.load(io.BytesIO(entry["pickled"]), map_location=map_location, weights_only=False)
        except Exception as error:  # noqa: BLE001  # a class that has gone since; an object raises what it likes
            rank_zero_warn(f"{source}: {entry['place']} is read as its plain equal, since the object is not: {error}")
            continue
        if outer:
            whole[outer[0]] = {**whole[outer[0]], last: value}
        else:
            whole[last] = value
    return whole


def read_otherwise(checkpoint: Mapping[str, Any], key: str) -> dict[str, str]:
    """The types of what a reader without ``weights_only=False`` gets as something else, by place; below one key."""
    entries = [entry for entry in checkpoint.get(OBJECTS_KEY, ()) if entry["place"][0] == key]
    return {at: name for entry in entries for at, name in entry["types"].items()}


def _places(checkpoint: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each value of a checkpoint, and each hyperparameter and callback's state by itself, with its keys."""
    for key, value in checkpoint.items():
        if type(value) is dict and all(type(name) is str for name in value):
            yield from (((key, name), item) for name, item in value.items())
        else:
            yield (key,), value


def _converted(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """What :func:`loadable` converts in a value to something that may not serve, with its place.

    A Tensor's subclass, a number of numpy's or an enum's member does: it is a Tensor, a number or a text without.
    """
    kind = type(value)
    if kind in _PLAIN or kind in _TORCH or _registered(kind) or isinstance(value, torch.Tensor):
        return
    if kind in (dict, OrderedDict, Counter):
        for key, item in value.items():
            yield from _converted(key, f"a key of {where}")
            yield from _converted(item, f"{where}[{key!r}]")
    elif kind in (list, tuple, set):
        for index, item in enumerate(value):
            yield from _converted(item, f"{where}[{index}]")
    elif not isinstance(value, np.generic | enum.Enum):
        yield where, value


def _key(key: Any, where: str) -> Any:
    return loadable(key, f"a key of {where}")


def _registered(kind: type) -> bool:
    """Whether the user has allowed this type to torch."""
    return any(
        kind is (entry[0] if isinstance(entry, tuple) else entry) for entry in torch.serialization.get_safe_globals()
    )
