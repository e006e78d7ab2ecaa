"""A model's modules, parameters and buffers by their plain names.

Invariant: the names here are those of ``model.named_parameters()`` before anything was attached, as if no layer were
wrapped for sharding or activation checkpointing. Attaching changes no name; what is found here is the stored tensor, W0,
never W0 + P·theta.
"""

from __future__ import annotations

from torch import Tensor, nn

READERS = "_gpart_readers"
"""The attribute of an adapted layer that says who computes which of its weights, see :mod:`gpart.injection.modules`."""

_WRAPPERS = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What torch's FSDP 1 and activation checkpointing put into the paths of the modules that they wrap."""


def split_name(name: str) -> tuple[str, str]:
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


def get_submodule(model: nn.Module, path: str) -> nn.Module:
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


def get_parameter(model: nn.Module, name: str) -> Tensor:
    """The stored parameter of this name: W0, not W0 + P·theta."""
    path, attribute = split_name(name)
    module = get_submodule(model, path)
    value: Tensor = stored(module, attribute) if is_adapted(module) else getattr(module, attribute)
    return value


def stored(module: nn.Module, attribute: str) -> Tensor:
    """What a layer holds under this name: a parameter, or a plain tensor that a wrapper has put in its place.

    FSDP 1 and DataParallel set plain tensors while a layer runs, which an ordinary layer has in its ``__dict__``.

    Raises:
        AttributeError: if it holds nothing.
    """
    value: Tensor | None = module._parameters.get(attribute)
    if value is None:
        value = module.__dict__.get(attribute)
    if value is None:
        raise AttributeError(f"{type(module).__name__!r} object has no attribute {attribute!r}")
    return value


def is_adapted(module: nn.Module) -> bool:
    """Whether a weight of this very layer is adapted.

    >>> is_adapted(nn.Linear(2, 2))
    False
    """
    return READERS in module.__dict__
