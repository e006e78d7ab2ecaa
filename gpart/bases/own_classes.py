"""Classes of one's own by their import path: the current folder is looked in, and what is not found says where."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from inspect import isclass
from types import ModuleType

_KEY = re.compile(r'Parser key "([\w.]+)"')
_NAMED = re.compile(r"(?:class_path'?(?:, val=|: |=| )|Given value: )'?([A-Za-z_]\w*(?:\.\w+)+)")
_ABOUT_CLASSES = ("class_path", "not accessible or invalid")
"""Words of a message about a setting that takes a class: it may be given as a file of settings too."""
_KIND = re.compile(r"does not correspond to a subclass of (\w+)")


def not_found(message: str) -> str | None:
    """What to say of jsonargparse's message about a class that it could not find; None if it is about something else."""
    key = _KEY.search(message)
    if key is None or not any(sign in message for sign in _ABOUT_CLASSES):
        return None
    reasons = (why_not(path, _KIND.search(message)) for path in dict.fromkeys(_NAMED.findall(message)))
    return next((f"{key[1]}: {why}" for why in reasons if why), None)


def why_not(path: str, kind: re.Match[str] | None = None) -> str | None:
    """Imports a class by its path. Returns why there is no such class, or why it won't do; None if there is one."""
    module, _, name = path.rpartition(".")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != module and not module.startswith(f"{missing}."):
            return (
                f"the module {module} of {path} cannot be imported: {error}"  # one that the user's own module imports
            )
        inside = sys.modules.get(missing.rpartition(".")[0])
        where = (
            f"in {_place(inside)}" if inside else f"in the current folder, {os.getcwd()}, or among installed packages"
        )
        return f"there is no class {path}: no module {missing} {where}"
    except Exception as error:  # noqa: BLE001  # whatever the user's own module raises
        return f"the module {module} of {path} cannot be imported: {type(error).__name__}: {error}"
    thing = getattr(found, name, None)
    if thing is None:
        there = ", ".join(_own_classes(found)) or "none"
        return f"there is no class {name} in {module} ({_place(found)}); its classes are {there}"
    if kind is not None and not (isclass(thing) and kind[1] in (each.__name__ for each in thing.__mro__)):
        return f"{path} ({_place(found)}) is no {kind[1]}: its class must be a subclass of it"
    return None


def _place(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or ", ".join(getattr(module, "__path__", [])) or "built into Python"


def _own_classes(module: ModuleType) -> Iterator[str]:
    """Those that it defines; a package's also those that it gathers."""
    for name, value in vars(module).items():
        if isclass(value) and value.__module__.startswith(module.__name__) and not name.startswith("_"):
            yield name
