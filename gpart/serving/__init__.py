"""Many adapters over one base: a store of them, a switch between them, and a server.

What is asked for is imported then: a client needs no torch, and the store and the switch need no server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpart.serving.client import Client
    from gpart.serving.store import AdapterStore, StoredAdapter
    from gpart.serving.switch import Switch

__all__ = ["AdapterStore", "Client", "StoredAdapter", "Switch"]

_HOME = {"AdapterStore": "store", "Client": "client", "StoredAdapter": "store", "Switch": "switch"}


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'gpart.serving' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"gpart.serving.{_HOME[name]}"), name)
    return value
