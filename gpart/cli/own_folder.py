"""``--own_folder``: all that a run writes goes below its own folder, so that two runs of one recipe share none."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from gpart.errors import GPartError
from gpart.serialization.locations import located

OUTPUTS = {"save_folder": "", "dirpath": "", "save_dir": "", "path": "MetricsWriter PredictionWriter SnapshotWriter"}
"""Settings that say where something is written, and the classes whose setting it is; none are all."""


def into_own_folder(config: MutableMapping[str, Any]) -> None:
    """Moves what a run's method, callbacks and loggers write, and ``--output``, below ``trainer.default_root_dir``.

    Args:
        config: the settings of ``fit`` or another command, which are changed.

    Raises:
        GPartError: if the run has no folder.
    """
    trainer = config["trainer"]
    root = trainer.get("default_root_dir")
    if root is None:
        raise GPartError("--own_folder is the run's own: give --trainer.default_root_dir")
    if config.get("output"):
        config["output"] = below(str(root), str(config["output"]))
    loggers = trainer.get("logger")
    every = loggers if isinstance(loggers, list) else [loggers]
    for part in _parts([config.get("method"), *(trainer.get("callbacks") or ()), *every]):
        settings, kind = part["init_args"], str(part["class_path"]).rpartition(".")[2]
        for name, classes in OUTPUTS.items():
            if settings.get(name) and (not classes or kind in classes.split()):
                settings[name] = below(str(root), str(settings[name]))


def below(root: str, place: str) -> str:
    """A place below a run's folder; at a URL, the run's folder below it, so that it stays where it is.

    Example:
        >>> below("runs/a", "adapters/x"), below("runs/a", "/data/../x"), below("runs/a", "runs/a/y")
        ('runs/a/adapters/x', 'runs/a/data/x', 'runs/a/y')
        >>> below("runs/a", "s3://bucket/x")
        's3://bucket/x/runs/a'
    """
    found, folder = located(place), located(root)
    if isinstance(found, str):
        return f"{found}/{root.strip('/')}"
    if isinstance(folder, Path) and found.is_relative_to(folder):
        return place
    inner = "/".join(part for part in found.parts if part not in (found.anchor, ".."))
    return f"{root.rstrip('/')}/{inner}"


def _parts(given: list[Any]) -> Iterator[Any]:
    return (part for part in given if hasattr(part, "get") and part.get("init_args") is not None)
