"""The memory settings as decisions: what :class:`gpart.config.MemoryPolicy` comes to on a device.

Invariant: a decision changes time and memory, never a result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Literal, ParamSpec, TypeVar

import torch

from gpart.config import MemoryPolicy

P = ParamSpec("P")
R = TypeVar("R")

Mode = Literal["kept", "forward", "recomputed"]
SHARE = 0.1
"""Of the device's memory, what group indices, and adapted weights, may take each where the setting is ``"auto"``."""


def stores_indices(policy: MemoryPolicy, nbytes: int, device: torch.device) -> bool:
    """Whether group indices of this many bytes in all are stored on this device."""
    if policy.indices == "auto":
        return bool(nbytes <= SHARE * device_memory(device))
    return policy.indices == "stored"


def mode_of(policy: MemoryPolicy, nbytes: int, device: torch.device) -> Mode:
    """What is done with adapted weights of this many bytes in all on this device."""
    if policy.weights != "auto":
        return policy.weights
    if nbytes > SHARE * device_memory(device):
        return "recomputed"
    # A GPU writes W0 + P·theta in less time than it waits for the question whether theta has changed.
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
