"""Reading what ``torch.save`` wrote without running code in it, whatever objects it holds.

Invariant: nothing is imported and nothing is called but what makes plain tensors and plain containers. Every other class
or function is an :class:`Inert` here; calling it, filling it and setting its state give an :class:`Inert`, and do nothing.

``torch.load(weights_only=True)`` runs no code either, but refuses the whole file for one object in it.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, ClassVar

import torch
from torch import Tensor


class Inert:
    """Stands where a file has a class, a function or an object that is not looked at."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        """Shows what it stands for."""
        return f"Inert({self.name!r})"


def read_inert(path: str | Path | IO[bytes]) -> Any:
    """What a file of ``torch.save`` holds, on the CPU, with an :class:`Inert` for each object.

    Raises:
        pickle.UnpicklingError: if it is no such file; on damaged ones torch's reader raises other errors too.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     torch.save({"theta": torch.ones(2), "network": torch.nn.Linear(2, 2)}, file.name)
        ...     read_inert(file.name)
        {'theta': tensor([1., 1.]), 'network': Inert('torch.nn.modules.linear.Linear')}
    """
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise pickle.UnpicklingError("a TorchScript archive, which torch.load would run")
    if not isinstance(path, str | Path):
        path.seek(0)
    return torch.load(path, "cpu", _AS_PICKLE, weights_only=False)


def _bytes(text: str, _coding: str) -> bytes:
    return text.encode("latin1")  # pickle's way to write bytes in protocol 2, in this coding always


def _plain_parameter(data: Any, requires_grad: Any, _hooks: Any, _state: Any = None) -> Any:
    return torch.nn.Parameter(data, bool(requires_grad)) if isinstance(data, Tensor) else Inert("torch.nn.Parameter")


def _plain_tensor(rebuild: Any, _kind: Any, args: Any, _state: Any) -> Any:
    return _call(rebuild, args)  # of a subclass, or with attributes: its numbers


def _strided_tensor(storage: Any, offset: int, size: Any, stride: Any, *_rest: Any) -> Tensor:
    rebuilt: Tensor = torch._utils._rebuild_tensor(storage, offset, size, stride)  # type: ignore[no-untyped-call]
    return rebuilt


def _tensor_of_dtype(storage: Any, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any) -> Tensor:
    return torch.empty(0, dtype=dtype).set_(storage._untyped_storage, offset, size, stride)


_CALLED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "__builtin__.set": set,
    "builtins.set": set,
    "_codecs.encode": _bytes,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch._utils._rebuild_tensor": _strided_tensor,
    "torch._utils._rebuild_tensor_v2": _strided_tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _plain_parameter,
    "torch._utils._rebuild_parameter_with_state": _plain_parameter,
    "torch._tensor._rebuild_from_type_v2": _plain_tensor,
}
"""By the names in files, all that is ever called."""


def _call(function: Any, args: Any) -> Any:
    if any(function is known for known in _CALLED.values()):
        return function(*args)
    return function if isinstance(function, Inert) else Inert(type(function).__name__)


class _Unpickler(pickle._Unpickler):
    """Python's own, with every operation replaced that imports, calls or sets something."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str, /) -> Any:
        """What stands for a global of the file."""
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return torch.UntypedStorage
        return _CALLED.get(f"{module}.{name}") or Inert(f"{module}.{name}")

    def get_extension(self, code: int) -> None:
        self.stack.append(Inert(f"extension {code}"))

    def _instantiate(self, kind: Any, args: Any) -> None:
        self.stack.append(_call(kind, args))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    def load_build(self) -> None:
        self.stack.pop()

    def load_appends(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)

    def load_append(self) -> None:
        item = self.stack.pop()
        if type(self.stack[-1]) is list:
            self.stack[-1].append(item)

    def load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is set:
            self.stack[-1].update(items)

    def load_setitems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) in (dict, OrderedDict):
            self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        if type(self.stack[-1]) in (dict, OrderedDict):
            self.stack[-1][key] = value

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.ADDITEMS[0]: load_additems,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


_AS_PICKLE = SimpleNamespace(__name__="gpart.serialization.inert", Unpickler=_Unpickler)
"""What torch takes in place of the module pickle."""
