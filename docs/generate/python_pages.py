"""The pages of the Python interface: one for each package, with every public name that it exports."""

from __future__ import annotations

import inspect
from importlib import import_module

ROOMS = {
    "gpart": "The method itself, on torch and safetensors. [The partition](../concepts/partition.md) says what it is.",
    "callbacks": "The methods as callbacks of Lightning's Trainer, and what reads and writes their files.",
    "lightning_modules": "The paper's tasks. They know of no adapter: a callback adds the method.",
    "datamodules": "The paper's data, and your own.",
    "arithmetic": "Adapters as numbers, without a model. [The page about it](../arithmetic.md) has examples.",
    "serving": "Many adapters over one base. [The page about it](../serving.md) has examples.",
}


def index() -> str:
    """The page above them."""
    rows = "".join(f"| [{_package(room)}]({room}.md) | {says} |\n" for room, says in ROOMS.items())
    return (
        "# Python\n\nMade from the docstrings. What is not on these pages is no part of the public interface.\n\n"
        f"| package | what is in it |\n| --- | --- |\n{rows}"
    )


def page(room: str) -> str:
    """A package's page."""
    package = import_module(_package(room))
    parts = [f"# {_package(room)}\n\n{ROOMS[room]}\n"]
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            kind = "autoclass" if inspect.isclass(value) else "autofunction"
            parts.append(f"\n## {name}\n\n```{{eval-rst}}\n.. {kind}:: {_package(room)}.{name}\n```\n")
    return "".join(parts)


def _package(room: str) -> str:
    return "gpart" if room == "gpart" else f"gpart.{room}"
