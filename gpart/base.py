"""The frozen base: its parameters by the names they had before attach, and its fingerprint.

Invariant: names here are those of ``model.named_parameters()`` before anything was attached, and as if no layer were
wrapped for sharding or activation checkpointing; ``torch.nn.utils
.parametrize`` moves a weight to ``<module>.parametrizations.<weight>.original``, and :func:`parameter` finds it there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_SAMPLES = 4096

_WRAPPERS = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What torch's FSDP 1 and activation checkpointing put into the paths of the modules that they wrap."""


def split(name: str) -> tuple[str, str]:
    """``"a.b.weight"`` as (module path, attribute): ``("a.b", "weight")``; ``("", "weight")`` for the root's own."""
    path, _, attribute = name.rpartition(".")
    return path, attribute


def plain_name(name: str) -> str:
    """The name of a parameter, buffer or module as if torch had not wrapped the modules on its path.

    >>> plain_name("net._fsdp_wrapped_module.0.weight"), plain_name("net._fsdp_wrapped_module")
    ('net.0.weight', 'net')
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch's wrappers; any other as it is.

    >>> layer = nn.Linear(2, 2)
    >>> unwrapped(layer) is layer
    True
    """
    inside = next((module._modules[name] for name in _WRAPPERS if name in module._modules), None)
    return module if inside is None else unwrapped(inside)


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a plain path, without what is wrapped around it."""
    return unwrapped(model.get_submodule(path))


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """``model.named_modules()`` by :func:`plain_name`, without the wrappers."""
    found = model.named_modules()
    return [(plain_name(path), module) for path, module in found if unwrapped(module) is module]


def named_parameters(model: nn.Module, *, remove_duplicate: bool = True) -> dict[str, nn.Parameter]:
    """``model.named_parameters()`` by :func:`plain_name`."""
    found = model.named_parameters(remove_duplicate=remove_duplicate)
    return {plain_name(name): value for name, value in found}


def named_buffers(model: nn.Module) -> dict[str, Tensor]:
    """``model.named_buffers()`` by :func:`plain_name`."""
    return {plain_name(name): value for name, value in model.named_buffers()}


def parameter(model: nn.Module, name: str) -> Tensor:
    """The stored parameter (W0, not W0 + P·theta) that had this name before attach."""
    path, attribute = split(name)
    module = submodule(model, path)
    if parametrize.is_parametrized(module, attribute):
        original: Tensor = module.parametrizations[attribute].original  # type: ignore[index, union-attr]
        return original
    value: Tensor = getattr(module, attribute)
    return value


def is_packed(weight: Tensor) -> bool:
    """Whether a weight is one of torchao's, which has a shape and a floating dtype but keeps fewer bits.

    >>> is_packed(torch.ones(2))
    False
    """
    if type(weight) is Tensor or type(weight) is nn.Parameter:
        return False  # without the walk below, which torch.compile cannot follow
    # By the module's name: torchao is an optional library, and only a weight of its making is asked.
    return any(kind.__module__.partition(".")[0] == "torchao" for kind in type(weight).__mro__)


def dense(weight: Tensor) -> Tensor:
    """A weight's numbers as a plain tensor: the weight itself, or a packed one's values in its dtype."""
    return weight.dequantize() if is_packed(weight) else weight


def whole(weight: Tensor) -> Tensor:
    """A sharded weight (DTensor) put together, by all ranks at once; any other as it is.

    >>> value = torch.ones(2)
    >>> whole(value) is value
    True
    """
    gather = getattr(weight, "full_tensor", None)  # by what it can do: torch.distributed is no part of the core
    return weight if gather is None else gather()


def state_key(model: nn.Module, name: str) -> str:
    """The key of that parameter in ``model.state_dict()`` as it is now."""
    path, attribute = split(name)
    if not parametrize.is_parametrized(submodule(model, path), attribute):
        return name
    return f"{path}.parametrizations.{attribute}.original".lstrip(".")


def entries_of(state: Mapping[str, Tensor], tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """The entries of a ``state_dict(keep_vars=True)`` that are these very tensors: a shared one has several keys."""
    same = {id(tensor) for tensor in tensors}
    return {key: value for key, value in state.items() if id(value) in same}


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
def sample(name: str, parameter: Tensor) -> Sample:
    """A parameter's :class:`Sample`; of a sharded one by all ranks at once.

    Raises:
        ValueError: if it is on the meta device and so has no values yet.
    """
    if parameter.is_meta:
        raise ValueError(f"{name} is on the meta device: its values are needed to recognise the base model")
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
        ValueError: if one is on the meta device and so has no values yet.

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
        ValueError: if one is on the meta device.

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
        taken = value if isinstance(value, Sample) else sample(name, value)
        digest.update(f"{name}{list(taken.shape)}\n".encode())
        flat = taken.values if through is None else taken.values.to(through)
        digest.update(flat.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def randomly_initialised(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Which of these parameters Transformers has just initialised at random, because the checkpoint had none.

    ``from_pretrained`` marks every parameter that it loads with ``_is_hf_initialized`` (transformers/modeling_utils.py,
    ``_initialize_missing_keys``). A model built by ``from_config`` has no marks, and none of its parameters is listed.
    """
    names = list(names)
    missing: set[str] = set()
    for path, module in named_modules(model):
        if not hasattr(module, "from_pretrained"):
            continue
        prefix = f"{path}." if path else ""
        inside = [name for name in names if name.startswith(prefix)]
        marked = {name for name in inside if getattr(parameter(model, name), "_is_hf_initialized", False)}
        if marked:
            missing.update(name for name in inside if name not in marked)
    return [name for name in names if name in missing]
