"""A study as its file says it.

Invariant: a :class:`Study` that :func:`gpart.studies.experiments.schema.read_study` returns is complete and consistent; what uses it
checks no setting again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

STATISTICS = ("median", "mean")
AVERAGE = "Avg"
"""The key of ``paper`` for the average over the columns."""
OWN_SETTINGS = (
    "config",
    "seed_everything",
    "trainer.default_root_dir",
    "trainer.callbacks.path",
    "trainer.enable_progress_bar",
    "test_best",
)
"""What the study sets itself; a file that sets it too would be overruled without a word."""
RUN_FIELDS = (
    "run",
    "seed",
    "chosen",
    "state",
    "metric",
    "score",
    "val_score",
    "seconds",
    "epochs",
    "steps",
    "trainable",
    "head",
    "kept_bytes",
    "peak_memory_bytes",
    "device",
)
"""The columns of table.csv that every study has; an axis may not be called so."""


@dataclass(frozen=True)
class AxisValue:
    """One value of an axis."""

    label: str
    config: tuple[str, ...]
    """Recipe names or files, as ``--config`` takes them."""
    settings: Mapping[str, Any]
    """Dotted settings."""
    tune: Mapping[str, tuple[Any, ...]]
    """Dotted settings to choose by validation score, each with its candidates."""
    metric: str | None
    """What is scored, without ``test/``; given exactly on the axis of the columns."""


@dataclass(frozen=True)
class Axis:
    """One thing that the study varies."""

    name: str
    values: tuple[AxisValue, ...]


@dataclass(frozen=True)
class Study:
    """A study as its file says it."""

    name: str
    """The file's name without its ending."""
    folder: Path
    config: tuple[str, ...]
    settings: Mapping[str, Any]
    axes: tuple[Axis, ...]
    columns: str
    """The name of the axis whose values are the table's columns."""
    seeds: tuple[int, ...]
    statistic: str
    scale: float
    paper: Mapping[str, Mapping[str, float]]
    """Row label to column label (or ``Avg``) to the paper's figure, already scaled."""

    @property
    def column_axis(self) -> Axis:
        """The axis whose values are the table's columns."""
        return next(axis for axis in self.axes if axis.name == self.columns)

    @property
    def row_axes(self) -> tuple[Axis, ...]:
        """The other axes, in file order; their combinations are the table's rows."""
        return tuple(axis for axis in self.axes if axis.name != self.columns)

    def row_label(self, labels: Mapping[str, str]) -> str:
        """The row's label: the row axes' labels joined by " / "; the study's name where it has one axis only."""
        return " / ".join(labels[axis.name] for axis in self.row_axes) or self.name

    @property
    def rows(self) -> list[str]:
        """The labels of all rows."""
        names = [axis.name for axis in self.row_axes]
        combinations = product(*([value.label for value in axis.values] for axis in self.row_axes))
        return [self.row_label(dict(zip(names, labels, strict=True))) for labels in combinations]


def value_text(value: Any) -> str:
    """A setting's value as the command line takes it: text as it is, all else as JSON.

    Raises:
        ValueError: if it is neither, such as a date or infinity.

    Example:
        >>> value_text("glue/rte"), value_text([1, 2]), value_text(None), value_text(5.0e-3)
        ('glue/rte', '[1, 2]', 'null', '0.005')
    """
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError(
            f"{value!r} ({type(value).__name__}) has no form on a command line; put it in quotes"
        ) from None
