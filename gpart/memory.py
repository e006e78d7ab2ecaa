"""What is kept in memory and what is computed when needed: two settings that change no result.

``indices``: the group number of each adapted weight, two bytes where d is at most 32,768, else four.

- ``"stored"``: computed once, kept.
- ``"computed"``: by the integer arithmetic inside each pass, chunk by chunk; nothing of the model's size is kept.

``weights``: W0 + P·theta.

- ``"kept"``: in memory that stays; computed once per optimizer step (with dropout once per forward pass).
- ``"forward"``: computed at each forward pass, kept until its backward pass.
- ``"recomputed"``: computed where a layer runs, and again in its backward pass; one layer's worth at a time.

``"auto"`` is, for both, what costs least time in a tenth of the device's memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

INDICES = ("auto", "stored", "computed")
WEIGHTS = ("auto", "kept", "forward", "recomputed")
SHARE = 0.1
"""Of the device's memory, what each of the two may take by itself."""


@dataclass(frozen=True)
class Memory:
    """The two settings.

    Raises:
        ValueError: if one is not among its choices.
    """

    indices: str = "auto"
    weights: str = "auto"

    def __post_init__(self) -> None:
        for name, choices in (("indices", INDICES), ("weights", WEIGHTS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")

    def stores_indices(self, nbytes: int, device: torch.device) -> bool:
        """Whether group numbers of this many bytes in all are stored on this device."""
        if self.indices == "auto":
            return bool(nbytes <= SHARE * device_memory(device))
        return self.indices == "stored"

    def weights_on(self, nbytes: int, device: torch.device) -> str:
        """What is done with adapted weights of this many bytes: ``"kept"``, ``"forward"`` or ``"recomputed"``."""
        if self.weights != "auto":
            return self.weights
        if nbytes > SHARE * device_memory(device):
            return "recomputed"
        # An accelerator writes W0 + P·theta in less time than it waits for the question whether theta has changed.
        return "kept" if device.type == "cpu" else "forward"


def constant_when_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Lets ``torch.compile`` call a function once, while it traces, and take what it returned for a constant.

    That is all that ``torch.compiler.assume_constant_result`` does, but that imports the whole compiler for it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a function takes any attribute
    return function


@constant_when_compiled  # else asking the system breaks the graph
def device_memory(device: torch.device) -> float:
    """The memory of a device in bytes; infinite where it cannot be asked.

    Example:
        >>> device_memory(torch.device("cpu")) > 2**28
        True
    """
    return _ask_for_memory(device)


@cache
def _ask_for_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):  # Windows has no sysconf
        return float("inf")
