"""The classes of an adapter that a run starts from, or scores, or predicts with.

Invariant: a head's outputs are never read in another order than they were trained in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpart.errors import GPartError
from gpart.serialization.sources import read_adapter

# An adapter's word for a task, and Transformers'.
_PROBLEMS = {
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}


def take_labels(config: Mapping[str, Any]) -> None:
    """Fills the model's ``labels``, ``num_labels`` and ``problem_type``, where they are null, with the adapter's.

    Args:
        config: a command's settings, with ``model`` and ``method``; they are changed.

    Raises:
        GPartFileError: if there is no such adapter.
        GPartError: if the model's labels are not the adapter's.
    """
    method, model = ((config.get(key) or {}).get("init_args") or {} for key in ("method", "model"))
    adapter = method.get("adapter")
    if adapter is None or "num_labels" not in model:
        return
    about = read_adapter(adapter)[0].about
    if about.labels is not None and model.get("labels") is not None and model["labels"] != about.labels:
        raise GPartError(
            f"the model's labels are {model['labels']}, and those of {adapter} are {about.labels}: leave them out to take"
            " the adapter's"
        )
    said = {
        "labels": about.labels,
        "num_labels": len(about.labels) if about.labels else 1 if about.task == "regression" else None,
        "problem_type": _PROBLEMS.get(str(about.task)),
    }
    for name, value in said.items():
        if name in model and model[name] is None:
            model[name] = value
