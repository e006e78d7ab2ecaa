"""GPart: fine-tuning by one global partition of the weights, W = W0 + P·theta with PᵀP = I.

This package alone is the method, on torch and safetensors. ``gpart.callbacks`` is the training framework on Lightning,
imported when it is asked for.
"""

from importlib import import_module
from types import ModuleType

from gpart.adapter import GPartAdapter, attach, get_adapters
from gpart.config import GPartConfig
from gpart.errors import GPartError, GPartFileError
from gpart.loading import load_adapter
from gpart.ops.dispatch import backends
from gpart.partition import Partition
from gpart.version import __version__

__all__ = [
    "GPartAdapter",
    "GPartConfig",
    "GPartError",
    "GPartFileError",
    "Partition",
    "__version__",
    "attach",
    "backends",
    "get_adapters",
    "load_adapter",
]

_ROOMS = ("callbacks", "datamodules", "lightning_modules", "packaged", "studies")


def __getattr__(name: str) -> ModuleType:
    """The rooms that import more than torch, when they are asked for: ``gpart.callbacks`` imports Lightning."""
    if name in _ROOMS:
        return import_module(f"gpart.{name}")
    raise AttributeError(f"module 'gpart' has no attribute {name!r}")
