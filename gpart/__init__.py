"""GPart: fine-tuning by one global partition of the weights, W = W0 + P·theta with PᵀP = I.

This package alone is the method, on torch and safetensors. ``gpart.callbacks`` is the training framework on Lightning.
What is asked for is imported then, so that ``import gpart`` takes no time and ``gpart --help`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpart.errors import GPartError, GPartFileError
from gpart.version import __version__

if TYPE_CHECKING:
    from gpart.adapter import GPartAdapter, attach, get_adapters
    from gpart.adapters import active_adapters, delete_adapter, rename_adapter, set_active
    from gpart.config import GPartConfig
    from gpart.loading import load_adapter
    from gpart.ops.dispatch import backends
    from gpart.partition import Partition

__all__ = [
    "GPartAdapter",
    "GPartConfig",
    "GPartError",
    "GPartFileError",
    "Partition",
    "__version__",
    "active_adapters",
    "attach",
    "backends",
    "delete_adapter",
    "get_adapters",
    "load_adapter",
    "rename_adapter",
    "set_active",
]

_HOME = {
    "GPartAdapter": "adapter",
    "attach": "adapter",
    "get_adapters": "adapter",
    **dict.fromkeys(["active_adapters", "delete_adapter", "rename_adapter", "set_active"], "adapters"),
    "GPartConfig": "config",
    "load_adapter": "loading",
    "backends": "ops.dispatch",
    "Partition": "partition",
}
"""The public names that need torch, and the modules that they are in."""

_MODULES = frozenset({*("adapter", "adapters", "config", "injection", "loading", "materialize", "ops", "partition"),
                      *("projections", "serialization", "arithmetic", "callbacks", "datamodules", "lightning_modules"),
                      *("packaged", "serving", "studies")})  # fmt: skip


def __getattr__(name: str) -> Any:
    """A public name or a room, imported at its first use."""
    if name in _HOME:
        value = getattr(import_module(f"gpart.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"gpart.{name}")
    else:
        raise AttributeError(f"module 'gpart' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
