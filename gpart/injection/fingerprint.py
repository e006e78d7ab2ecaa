"""What a base model is recognised by: the fingerprint of its frozen parameters.

Invariant: a base and its copies in bfloat16, float16 and float32 are taken for one another, and a base with other names,
shapes or sampled numbers never is.

The same positions, read to the bit, tell whether frozen weights have moved: :func:`exact_digests` and :func:`moved`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from gpart.errors import GPartError
from gpart.injection.tensors import dense, whole

FORMAT = 2
"""Of the fingerprints that are written."""

_SAMPLES = 4096  # of format 1

# Time goes into places that are far apart in memory, about 0.1 us each; the neighbours of such a place cost nothing.
_PLACES, _RUN = 512, 8
_EDGE, _LONGEST_EDGE = 4096, 16_384
_WHOLE = 16_384


@dataclass(frozen=True)
class Sample:
    """What the fingerprint needs of a parameter, for the time when the parameter is not whole.

    Attributes:
        shape: of the whole parameter.
        values: by format, the numbers that the fingerprint looks at, in the parameter's dtype.
    """

    shape: torch.Size
    values: Mapping[int, Tensor]


def sample_of(name: str, parameter: Tensor) -> Sample:
    """A parameter's :class:`Sample`; of a sharded one by all ranks at once.

    Raises:
        GPartError: if it is on the meta device and so has no values yet.
    """
    full = _whole(name, parameter)
    return Sample(parameter.shape, {version: looked(full).clone() for version, looked in _LOOKED_AT.items()})


def fingerprint(parameters: Mapping[str, Tensor | Sample], version: int = FORMAT) -> str:
    """SHA-256 over names, shapes and fixed positions of each tensor, rounded to bfloat16; 64 hex digits.

    A float32 base and its bfloat16 copy agree. A float16 copy may differ, since it was rounded twice: see :func:`is_base`.
    Format 2 looks at the first and the last rows, 4,096 numbers in between, and the whole of small tensors; format 1 at
    4,096 numbers at equal distances, ``i * numel // 4096``.

    Args:
        parameters: the frozen parameters by name, or samples of them; their order does not matter. Whole numbers above
            256 are rounded as others are.
        version: the format.

    Raises:
        GPartError: if one is on the meta device and so has no values yet.

    Example:
        >>> weight = torch.full((2, 2), 0.1)
        >>> fingerprint({"w": weight}) == fingerprint({"w": weight.bfloat16()})
        True
        >>> fingerprint({"w": weight}) == fingerprint({"w": weight + 0.01})
        False
    """
    return _first_format(parameters) if version == 1 else joined(parts(parameters))


def is_base(parameters: Mapping[str, Tensor | Sample], expected: object, version: object = FORMAT) -> bool:
    """Whether a base, or its float16 copy, has this fingerprint: what 16-true has trained on is read before it converts.

    Args:
        parameters: the frozen parameters by name.
        expected: the fingerprint.
        version: its format.

    Raises:
        GPartError: if one is on the meta device.

    Example:
        >>> weight = torch.linspace(0.1, 0.2, 4096)
        >>> written = fingerprint({"w": weight.half()})
        >>> written == fingerprint({"w": weight}), is_base({"w": weight}, written), is_base({"w": weight + 0.01}, written)
        (False, True, False)
    """
    if version == 1:
        return expected in (_first_format(parameters), _first_format(parameters, torch.float16))
    if expected == joined(parts(parameters)) or expected == joined(parts(parameters, torch.float16)):
        return True
    real = {name: real for name, value in parameters.items() if (real := _real(value)) is not None}
    return bool(real) and expected == joined(parts({**parameters, **real}))


def _real(value: Tensor | Sample) -> Tensor | Sample | None:
    """The real parts of complex numbers, which are all that was looked at before 0.2; None of others."""
    if isinstance(value, Tensor):
        return value.real if value.is_complex() else None
    looked = {version: values.real for version, values in value.values.items() if values.is_complex()}
    return Sample(value.shape, looked) if looked else None


@torch.no_grad()
def parts(parameters: Mapping[str, Tensor | Sample], through: torch.dtype | None = None) -> dict[str, bytes]:
    """What format 2 makes of each parameter, in the order of the names; of their copies in another dtype if asked."""
    found = {}
    for name in sorted(parameters):
        shape, values = _values(name, parameters[name], version=2)
        digest = hashlib.blake2b(f"{name}{list(shape)}\n".encode(), digest_size=32)
        if values.is_complex():
            values = torch.view_as_real(values.resolve_conj()).reshape(-1)
        digest.update(_bytes((values if through is None else values.to(through)).to(torch.bfloat16)))
        found[name] = digest.digest()
    return found


def joined(made: Mapping[str, bytes]) -> str:
    """The fingerprint of the whole: SHA-256 over the parts."""
    return hashlib.sha256(b"".join(made.values())).hexdigest()


def shortened(made: Mapping[str, bytes]) -> str:
    """The parts as two letters each, 800 at most: enough to name what differs, not to recognise a base by.

    Where there are more than 400 parameters, neighbours share two letters.
    """
    groups = _groups(list(made))
    digests = (hashlib.blake2b(b"".join(made[name] for name in group), digest_size=3).digest() for group in groups)
    return "".join(base64.urlsafe_b64encode(digest).decode()[:2] for digest in digests)


def shortened_length(count: int) -> int:
    """How many letters :func:`shortened` has for this many parameters.

    >>> shortened_length(3), shortened_length(401)
    (6, 402)
    """
    return 2 * len(_groups([""] * count))


def differing(parameters: Mapping[str, Tensor | Sample], expected: str) -> list[str]:
    """The parameters, in the order of their names, whose shortened parts differ from a file's; neighbours as a range.

    Empty where there is nothing to compare: the file holds no parts, or those of another number of parameters.
    """
    groups = _groups(sorted(parameters))
    if len(expected) != 2 * len(groups):
        return []
    found = []
    for through in (None, torch.float16):
        mine = shortened(parts(parameters, through))
        found.append([group for i, group in enumerate(groups) if mine[2 * i :][:2] != expected[2 * i :][:2]])
    return [group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}" for group in min(found, key=len)]


def _groups(names: list[str]) -> list[list[str]]:
    size = max(1, -(-len(names) // 400))
    return [names[start : start + size] for start in range(0, len(names), size)]


@torch.no_grad()
def _first_format(parameters: Mapping[str, Tensor | Sample], through: torch.dtype | None = None) -> str:
    """The fingerprint as files of format 1 have it."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        shape, values = _values(name, parameters[name], version=1)
        digest.update(f"{name}{list(shape)}\n".encode())
        digest.update(_bytes((values if through is None else values.to(through)).to(torch.bfloat16)))
    return digest.hexdigest()


def _values(name: str, value: Tensor | Sample, version: int) -> tuple[torch.Size, Tensor]:
    if isinstance(value, Sample):
        return value.shape, value.values[version]
    return value.shape, _LOOKED_AT[version](_whole(name, value))


@torch.no_grad()
def _whole(name: str, parameter: Tensor) -> Tensor:
    if parameter.is_meta:
        raise GPartError(
            f"{name} is on the meta device: its values are needed to recognise the base model (check_base=False does not"
            " look at them)"
        )
    return whole(dense(parameter.detach()))


def exact_digests(parameters: Mapping[str, Tensor]) -> dict[str, bytes]:
    """What tells whether parameters still have their bits: of each the digest of the bits that are looked at.

    Looked at are the first and the last rows and 4,096 numbers in between; of tensors up to 16,384 numbers all. What
    a process has no bits of (on the meta device, sharded, not yet materialised) is left out.

    Args:
        parameters: the frozen parameters by name.

    Example:
        >>> weight = torch.ones(2, 2)
        >>> before = exact_digests({"w": weight})
        >>> moved(before, exact_digests({"w": weight})), moved(before, exact_digests({"w": weight.nextafter(weight * 2)}))
        ([], ['w'])
    """
    return {name: _exact_digest(value) for name, value in parameters.items() if _has_bits(value)}


def moved(before: Mapping[str, bytes], now: Mapping[str, bytes]) -> list[str]:
    """The names, in the first mapping's order, whose bits are others in the second.

    A parameter that was converted to another dtype or shape in between, or that one of both lacks, cannot be compared
    and is not listed.

    Args:
        before: what :func:`exact_digests` gave.
        now: what it gives now.
    """
    return [
        name
        for name, digest in before.items()
        if name in now and now[name] != digest and now[name][:_KIND] == digest[:_KIND]
    ]


_KIND = 8  # bytes for dtype and shape, in front of those for the bits


def _exact_digest(value: Tensor) -> bytes:
    kind = hashlib.blake2b(f"{value.dtype} {list(value.shape)}".encode(), digest_size=_KIND).digest()
    return kind + hashlib.blake2b(_bytes(_looked_at(dense(value.detach()))), digest_size=16).digest()


def _has_bits(value: Tensor) -> bool:
    return not (value.is_meta or isinstance(value, UninitializedParameter) or hasattr(value, "full_tensor"))


def _looked_at(value: Tensor) -> Tensor:
    """The numbers of a tensor that format 2 looks at, in one row on the CPU.

    These are the first and the last index of its first dimension (at least 4,096 numbers, at most 16,384 of each), and
    512 runs of eight numbers, one somewhere in each of 512 equal stretches: at equal distances they would all stand in
    one column of a matrix with 4,096 of them.
    """
    flat = value.reshape(-1)
    if flat.numel() <= _WHOLE:
        return flat.cpu()
    row = flat.numel() // value.shape[0]
    edge = min(row * -(-_EDGE // row), _LONGEST_EDGE)
    runs = flat[: flat.numel() // _RUN * _RUN].view(-1, _RUN)
    between = runs.index_select(0, _places(runs.shape[0]).to(flat.device)).view(-1)
    return torch.cat([flat[:edge], between, flat[-edge:]]).cpu()


@lru_cache(maxsize=64)  # a model has few shapes
def _places(runs: int) -> Tensor:
    stretch = torch.arange(_PLACES, device="cpu")  # also within ``torch.device("meta")``, since it is kept
    return stretch * runs // _PLACES + stretch * 2_654_435_761 % (runs // _PLACES)


def _bytes(values: Tensor) -> memoryview:
    # A copy: torch fixes the size of memory that numpy has seen, and FSDP2 gives a parameter's memory back by resizing it.
    return values.contiguous().clone().view(torch.uint8).numpy().data


def _evenly(value: Tensor) -> Tensor:
    """What format 1 looks at."""
    flat = value.reshape(-1)
    at = torch.arange(_SAMPLES, device=flat.device) * flat.numel() // _SAMPLES
    return (flat[at] if flat.numel() > _SAMPLES else flat).cpu()


_LOOKED_AT = {1: _evenly, 2: _looked_at}
