"""What a command takes from the adapter that it scores or predicts with: classes, and sizes of inputs.

Invariant: what the command line says goes over what the adapter does. Classes in another order than the adapter's are refused
later, by the method's callback.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpart.datamodules.language.text_labels import PROBLEMS
from gpart.serialization.about import About
from gpart.serialization.sources import about_of


def take_settings(config: Mapping[str, Any], words: Iterable[str]) -> None:
    """Fills settings of the model and the data with the adapter's.

    These are the model's ``labels``, ``num_labels`` and ``problem_type`` where they are null, and the data's
    ``max_length`` and ``image_size`` where the command line does not say them.

    Args:
        config: a command's settings, with ``model``, ``data`` and ``method``; they are changed.
        words: of the command line.

    Raises:
        GPartFileError: if there is no such adapter.
        GPartError: if its files are damaged.
    """
    method, model, data = ((config.get(key) or {}).get("init_args") or {} for key in ("method", "model", "data"))
    adapter = method.get("adapter")
    if adapter is None:
        return
    about = about_of(adapter, method.get("name"))
    said = {word.split("=")[0].rpartition(".")[2] for word in words if word.startswith("--data.")}
    for name, value in _inputs(about).items():
        if name in data and name not in said:
            data[name] = value
    if "num_labels" in model:
        _take_labels(model, about)


def _inputs(about: About) -> dict[str, int]:
    """The sizes of inputs by the names of the data's settings."""
    found = {"max_length": about.inputs.get("max_length"), "image_size": about.inputs.get("image_size")}
    size = about.inputs.get("size")
    if isinstance(size, list) and len(set(size)) == 1:  # the settings of pictures; an image_size makes squares
        found["image_size"] = size[0]
    return {name: value for name, value in found.items() if isinstance(value, int) and not isinstance(value, bool)}


def _take_labels(model: Any, about: About) -> None:
    said = {
        "labels": about.labels,
        "num_labels": len(about.labels) if about.labels else 1 if about.task == "regression" else None,
        "problem_type": next((problem for task, problem in PROBLEMS.items() if task == about.task), None),
    }
    for name, value in said.items():
        if name in model and model[name] is None:
            model[name] = value
