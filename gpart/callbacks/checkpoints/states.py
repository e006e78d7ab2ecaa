"""The states of a module that a checkpoint of Lightning holds: its own, and those of averaged copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

_STATES = ("state_dict", "current_model_state")
"""Where a checkpoint holds the module's state; the second is where WeightAveraging keeps what it replaces."""

_AVERAGE = "average_model_state"
"""Where StochasticWeightAveraging keeps its copy in its own state."""


def with_states(
    checkpoint: Mapping[str, Any], change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Any]:
    """A checkpoint with every state of the module in it changed; the given one is left as it is.

    Args:
        checkpoint: as Lightning makes it.
        change: what is done with each state: the module's own, and those of copies that are averaged.
    """
    changed = dict(checkpoint)
    for name in _STATES:
        if name in changed:
            changed[name] = change(changed[name])
    callbacks = changed.get("callbacks")
    if isinstance(callbacks, Mapping):
        changed["callbacks"] = {
            key: {**state, _AVERAGE: change(state[_AVERAGE])} if _holds_average(state) else state
            for key, state in callbacks.items()
        }
    return changed


def _holds_average(state: Any) -> bool:
    return isinstance(state, Mapping) and isinstance(state.get(_AVERAGE), Mapping)
