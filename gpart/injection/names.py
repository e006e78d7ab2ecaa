"""A model's modules, parameters and buffers by their plain names.

Invariant: the names here are those of ``model.named_parameters()`` before anything was attached, as if nothing were
wrapped for compiling, for several devices, for sharding or for activation checkpointing. Attaching changes no name; what
is found here is the stored tensor, W0, never W0 + P·theta.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

READERS = "_gpart_readers"
"""The attribute of an adapted layer that says who computes which of its weights, see :mod:`gpart.injection.modules`."""

HOLDS_ADAPTERS = "_gpart_holds_adapters"
"""A true attribute of the class of what holds adapters, :class:`gpart.injection.modules.Adapters`."""

_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")
"""What FSDP 1, activation checkpointing and ``torch.compile`` put into the paths of the modules that they wrap."""

_FABRIC = ("_original_module", "_forward_module")
"""What Fabric's ``setup`` keeps a module under: as it was given, and as the strategy has wrapped it."""


def split_name(name: str) -> tuple[str, str]:
    """``"a.b.weight"`` as (module path, attribute): ``("a.b", "weight")``; ``("", "weight")`` for the root's own."""
    path, _, attribute = name.rpartition(".")
    return path, attribute


def plain_name(name: str) -> str:
    """The name of a parameter, buffer or module as if torch had not wrapped the modules on its path.

    >>> plain_name("net._fsdp_wrapped_module.0.weight"), plain_name("net._orig_mod")
    ('net.0.weight', 'net')
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS and part not in _FABRIC)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside the wrappers of torch and Fabric; any other as it is.

    >>> layer = nn.Linear(2, 2)
    >>> unwrapped(layer) is layer, unwrapped(nn.DataParallel(layer)) is layer
    (True, True)
    """
    name = _inside(module)
    inside = None if name is None else module._modules[name]
    return module if inside is None else unwrapped(inside)


def replicated(module: nn.Module) -> bool:
    """Whether DistributedDataParallel is among the wrappers around a module, as after ``fabric.setup``.

    >>> replicated(nn.Linear(2, 2))
    False
    """
    if isinstance(module, DistributedDataParallel):
        return True
    return _inside(module) is not None and any(replicated(child) for child in module.children())


def _inside(module: nn.Module) -> str | None:
    """The name under which a wrapper holds what it wraps; None for a module that is no wrapper."""
    if isinstance(module, (nn.DataParallel, DistributedDataParallel)):
        return "module"
    if all(name in module._modules for name in _FABRIC):
        return _FABRIC[0]
    return next((name for name in _WRAPPERS if name in module._modules), None)


def child_of(module: nn.Module, name: str) -> nn.Module | None:
    """The module's child of this name; None where it has none."""
    return module._modules[name] if name in module._modules else None  # noqa: SIM401  # a scripted module's has no get


def get_submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a plain path, without what is wrapped around it.

    Raises:
        AttributeError: if there is none.
    """
    module = model
    for part in path.split(".") if path else []:
        if part == _inside(module):  # a path may name the wrappers as well
            continue
        module = unwrapped(module)
        found = child_of(module, part)
        if found is None:
            raise AttributeError(f"{type(module).__name__} has no submodule {part!r} (of {path!r})")
        module = found
    return unwrapped(module)


def _plain_paths(model: nn.Module) -> dict[str, str]:
    """The plain path of every module by the path that it has now; that of a wrapper is that of what it wraps."""
    paths = {"": ""}
    inside = {"": _inside(model)}
    for path, module in model.named_modules(remove_duplicate=False):
        if path:
            above, _, name = path.rpartition(".")
            wraps = name == inside[above] or (inside[above] in _FABRIC and name in _FABRIC)
            paths[path] = paths[above] if wraps else f"{paths[above]}.{name}" if paths[above] else name
            inside[path] = _inside(module)
    return paths


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """``model.named_modules()`` by their plain names, without the wrappers."""
    paths = _plain_paths(model)
    return [(paths[path], module) for path, module in model.named_modules() if _inside(module) is None]


def named_parameters(model: nn.Module, *, remove_duplicate: bool = True) -> dict[str, nn.Parameter]:
    """``model.named_parameters()`` by their plain names."""
    paths = _plain_paths(model)
    return {_joined(paths, name): value for name, value in model.named_parameters(remove_duplicate=remove_duplicate)}


def named_buffers(model: nn.Module) -> dict[str, Tensor]:
    """``model.named_buffers()`` by their plain names, without what adapters keep for themselves."""
    paths = _plain_paths(model)
    own = tuple(f"{path}." for path, module in model.named_modules() if getattr(type(module), HOLDS_ADAPTERS, False))
    return {_joined(paths, name): value for name, value in model.named_buffers() if not name.startswith(own)}


def _joined(paths: dict[str, str], name: str) -> str:
    path, attribute = split_name(name)
    return f"{paths[path]}.{attribute}" if paths[path] else attribute


def get_parameter(model: nn.Module, name: str) -> Tensor:
    """The stored parameter of this name: W0, not W0 + P·theta."""
    path, attribute = split_name(name)
    module = get_submodule(model, path)
    value: Tensor = stored(module, attribute) if is_adapted(module) else getattr(module, attribute)
    return value


def get_buffer(model: nn.Module, name: str) -> Tensor:
    """The buffer of this name."""
    path, attribute = split_name(name)
    value: Tensor = getattr(get_submodule(model, path), attribute)
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


def is_offloaded(model: nn.Module, name: str) -> bool:
    """Whether accelerate keeps a parameter's values elsewhere while its layer does not run."""
    hooked = hasattr(get_submodule(model, split_name(name)[0]), "_hf_hook")
    return hooked and get_parameter(model, name).is_meta
