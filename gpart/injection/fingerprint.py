"""What a base model is recognised by: the fingerprint of its frozen parameters.

Invariant: a base and its copies in bfloat16, float16 and float32 are taken for one another, and a base with other names,
shapes or sampled numbers never is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpart.errors import GPartError
from gpart.injection.tensors import dense, whole

_SAMPLES = 4096


@dataclass(frozen=True)
class Sample:
    """What the fingerprint needs of a parameter, for the time when the parameter is not whole.

    Attributes:
        shape: of the whole parameter.
        values: at most 4,096 of its numbers, at fixed positions, in its dtype.
    """

    shape: torch.Size
    values: Tensor


@torch.no_grad()
def sample_of(name: str, parameter: Tensor) -> Sample:
    """A parameter's :class:`Sample`; of a sharded one by all ranks at once.

    Raises:
        GPartError: if it is on the meta device and so has no values yet.
    """
    if parameter.is_meta:
        raise GPartError(f"{name} is on the meta device: its values are needed to recognise the base model")
    flat = whole(dense(parameter.detach())).reshape(-1)
    at = torch.arange(_SAMPLES, device=flat.device) * flat.numel() // _SAMPLES
    return Sample(parameter.shape, (flat[at] if flat.numel() > _SAMPLES else flat).cpu().clone())


def fingerprint(parameters: Mapping[str, Tensor | Sample]) -> str:
    """SHA-256 over names, shapes and at most 4,096 fixed positions of each tensor, rounded to bfloat16; 64 hex digits.

    A float32 base and its bfloat16 copy agree. Positions are evenly spaced, ``i * numel // 4096``. A float16 copy may
    differ, since it was rounded twice: see :func:`is_base`.

    Args:
        parameters: the frozen parameters by name, or samples of them; their order does not matter.

    Raises:
        GPartError: if one is on the meta device and so has no values yet.

    Example:
        >>> weight = torch.full((2, 2), 0.1)
        >>> fingerprint({"w": weight}) == fingerprint({"w": weight.bfloat16()})
        True
        >>> fingerprint({"w": weight}) == fingerprint({"w": weight + 0.01})
        False
    """
    return _digest(parameters)


def is_base(parameters: Mapping[str, Tensor | Sample], expected: object) -> bool:
    """Whether a base, or its float16 copy, has this fingerprint: what 16-true has trained on is read before it converts.

    Args:
        parameters: the frozen parameters by name.
        expected: the fingerprint.

    Raises:
        GPartError: if one is on the meta device.

    Example:
        >>> weight = torch.linspace(0.1, 0.2, 4096)
        >>> written = fingerprint({"w": weight.half()})
        >>> written == fingerprint({"w": weight}), is_base({"w": weight}, written), is_base({"w": weight + 0.01}, written)
        (False, True, False)
    """
    return fingerprint(parameters) == expected or _digest(parameters, torch.float16) == expected


def _digest(parameters: Mapping[str, Tensor | Sample], through: torch.dtype | None = None) -> str:
    """The fingerprint of the parameters, or of their copy in another dtype."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        value = parameters[name]
        taken = value if isinstance(value, Sample) else sample_of(name, value)
        digest.update(f"{name}{list(taken.shape)}\n".encode())
        flat = taken.values if through is None else taken.values.to(through)
        digest.update(flat.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
