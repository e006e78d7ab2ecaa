"""LSTM, GRU and RNN, whose ``forward`` reads no attribute but ``_flat_weights``, a list that torch keeps of their weights.

Invariant: ``forward``, torch's or a user's, gets a list with W0 + P·theta in it, made at each read; torch's own upkeep of
the list, when a layer is moved, flattened for cuDNN or pickled, gets the stored parameters, as without an adapter.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

UPKEEP = "torch.nn.modules.rnn"
"""The module of torch whose code asks a recurrent layer for its parameters by their names to keep the list."""

_LIST = "_flat_weights"


def is_recurrent(kind: type[nn.Module]) -> bool:
    """Whether layers of this class read their weights from torch's list; a cell such as LSTMCell reads attributes.

    >>> is_recurrent(nn.GRU), is_recurrent(nn.GRUCell)
    (True, False)
    """
    return issubclass(kind, nn.RNNBase)


def overrides() -> dict[str, Any]:
    """What the class of an adapted recurrent layer has besides."""
    return {_LIST: property(_get, _put), "all_weights": property(_all_weights)}


def _get(self: nn.Module) -> list[Tensor | None]:
    if not torch.compiler.is_compiling():
        caller = sys._getframe(1)
        if caller.f_globals.get("__name__") == UPKEEP and caller.f_code.co_name != "forward":
            kept: list[Tensor | None] = self.__dict__[_LIST]
            return kept
    return [getattr(self, name, None) for name in self._flat_weights_names]  # type: ignore[union-attr]  # a list


def _put(self: nn.Module, value: list[Tensor | None]) -> None:
    self.__dict__[_LIST] = value


def _all_weights(self: nn.Module) -> list[list[Tensor]]:
    return [[getattr(self, name) for name in names] for names in self._all_weights]  # type: ignore[union-attr]
