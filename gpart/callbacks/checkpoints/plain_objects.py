"""Objects in a checkpoint that hold the adapted network, as hyperparameters do: without the adapter, for plain readers.

Lightning pickles a network that is a hyperparameter, and its reader builds the module from that one.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping
from typing import Any

from torch import nn

from gpart.adapter import get_adapters
from gpart.callbacks.checkpoints.hyperparameters import NotPlainError, loadable
from gpart.injection.modules import Adapters, Theta


def with_plain_network(checkpoint: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """A checkpoint whose objects hold the adapted network as it was before; the given one is left as it is.

    Its numbers are W0: the state of the file goes over them in a plain reader, and theta in one that knows adapters.

    Args:
        checkpoint: as Lightning makes it.
        network: the adapted network.
    """
    return {key: value if _is_plain(value) else _replaced(value, network) for key, value in checkpoint.items()}


def _is_plain(value: Any) -> bool:
    try:
        loadable(value)
    except NotPlainError:
        return False
    return True


def _replaced(value: Any, network: nn.Module) -> Any:
    writer = _Writer(file := io.BytesIO(), network)
    try:
        writer.dump(value)
    except Exception:  # noqa: BLE001  # an object raises what it likes; torch.save will meet it too, and say so
        return value
    if not writer.found:
        return value
    plain = copy.deepcopy(network)
    for adapter in get_adapters(plain).values():
        adapter.detach()
    file.seek(0)
    return _Reader(file, plain).load()


class _Writer(pickle.Pickler):
    """Writes a module of the network as its path in it."""

    def __init__(self, file: io.BytesIO, network: nn.Module) -> None:
        super().__init__(file)
        modules = network.named_modules()
        self._paths = {id(module): path for path, module in modules if not isinstance(module, Adapters | Theta)}
        self.found = False

    def persistent_id(self, value: Any) -> str | None:
        path = self._paths.get(id(value))
        self.found |= path is not None
        return path


class _Reader(pickle.Unpickler):
    """Reads what :class:`_Writer` has just written, with another network's modules in those places."""

    def __init__(self, file: io.BytesIO, network: nn.Module) -> None:
        super().__init__(file)
        self._network = network

    def persistent_load(self, path: str) -> nn.Module:
        return self._network.get_submodule(path)
