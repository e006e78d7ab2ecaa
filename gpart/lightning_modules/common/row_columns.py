"""What a prediction says of the row that it is for, so that it can be joined with what it was made from.

Invariant: what the model says keeps its name; an input column of that name is told apart by ``input_``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def row_columns(batch: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The columns of a batch that say which rows it has: its lists of texts and numbers, and ``idx``.

    What a DataModule puts under ``rows``, a mapping for each row, gives a column for each of its keys.

    Example:
        >>> import torch
        >>> row_columns({"input_ids": torch.ones(2, 3), "idx": torch.tensor([4, 5]), "rows": [{"a": "x"}, {"a": "y"}]})
        {'idx': [4, 5], 'a': ['x', 'y']}
    """
    idx = batch.get("idx")
    columns: dict[str, list[Any]] = {} if idx is None else {"idx": _listed(idx)}
    aside = ("idx", "rows", "labels")
    columns |= {
        name: value
        for name, value in batch.items()
        if name not in aside and isinstance(value, list) and all(map(_plain, value))
    }
    rows = batch.get("rows") or []
    for name in dict.fromkeys(name for row in rows for name in row):
        columns[name] = [row.get(name) for row in rows]
    return columns


def beside(batch: Mapping[str, Any], answers: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """A batch's answers, beside the columns that say which rows they are for.

    Example:
        >>> beside({"rows": [{"text": "late", "label": "x"}]}, {"label": ["delivery"]})
        {'text': ['late'], 'input_label': ['x'], 'label': ['delivery']}
        >>> beside({"rows": [{"input_label": "w", "label": "x"}]}, {"label": ["delivery"]})
        {'input_label': ['w'], 'input_input_label': ['x'], 'label': ['delivery']}
    """
    columns = row_columns(batch)
    renamed: dict[str, list[Any]] = {}
    for name, value in columns.items():
        free = name
        while free in answers or (free != name and free in columns):  # such as the answers of another prediction
            free = f"input_{free}"
        renamed[free] = value
    return {**renamed, **answers}


def _listed(value: Any) -> list[Any]:
    return list(value.tolist() if isinstance(value, Tensor) else value)


def _plain(value: Any) -> bool:
    return isinstance(value, (str, int, float))
