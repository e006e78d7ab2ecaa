"""The content of a study's file, as dataclasses.

Invariant: a :class:`Study` that comes from :func:`gpart.studies.experiments.schema.read_study` is complete and
consistent. The code that uses it does not check its settings again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gpart.errors import GPartError

STATISTICS = ("median", "mean")
MODES = ("max", "min")
"""Which of two scores is the better one: the higher or the lower."""
AVERAGE = "Avg"
"""The key of ``paper`` for the average over the columns."""
OWN_SETTINGS = (
    "config",
    "seed_everything",
    "trainer.default_root_dir",
    "trainer.callbacks.path",
    "trainer.enable_progress_bar",
    "test_best",
    "own_folder",
)
"""The settings that a study makes itself. A file may not set them, since its values would be silently overruled."""
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
"""The columns that table.csv has for every study. An axis may not have one of these names."""


@dataclass(frozen=True)
class AxisValue:
    """One value of an axis."""

    label: str
    config: tuple[str, ...]
    """The names of recipes, or files, as ``--config`` takes them."""
    settings: Mapping[str, Any]
    """Settings by their dotted names, such as ``model.lr``."""
    tune: Mapping[str, tuple[Any, ...]]
    """Settings that are tuned by the validation score: the values to try, by their dotted names."""
    seeded: tuple[str, ...]
    """Settings that take the run's seed, by their dotted names, such as ``method.seed``."""
    metric: str | None
    """The name of the score: what the test logs as ``test/NAME``, or as NAME. Only values on the axis of the columns have one."""
    mode: str
    """Whether a higher or a lower score is better, of :data:`MODES`."""


@dataclass(frozen=True)
class Axis:
    """One thing that the study varies, such as the task or the method."""

    name: str
    values: tuple[AxisValue, ...]


@dataclass(frozen=True)
class Study:
    """The content of a study's file."""

    name: str
    """The file's name, without its suffix."""
    folder: Path
    config: tuple[str, ...]
    settings: Mapping[str, Any]
    seeded: tuple[str, ...]
    """Settings of every run that take its seed."""
    axes: tuple[Axis, ...]
    columns: str
    """The name of the axis whose values are the table's columns."""
    seeds: tuple[int, ...]
    tune_seeds: int
    """How many of the seeds, from the first, choose among the tuned settings."""
    statistic: str
    scale: float
    baseline: str | None
    """The label of the row that the others are compared with, seed by seed."""
    paper: Mapping[str, Mapping[str, float]]
    """The paper's figures, already scaled, by the label of the row and then by that of the column (or ``Avg``)."""

    @property
    def column_axis(self) -> Axis:
        """The axis whose values are the table's columns."""
        return next(axis for axis in self.axes if axis.name == self.columns)

    @property
    def row_axes(self) -> tuple[Axis, ...]:
        """The other axes, in file order; their combinations are the table's rows."""
        return tuple(axis for axis in self.axes if axis.name != self.columns)

    def row_label(self, labels: Mapping[str, str]) -> str:
        """Returns the label of a row: the labels on the row axes, joined by " / ", or the study's name without any."""
        return " / ".join(labels[axis.name] for axis in self.row_axes) or self.name

    @property
    def row_labels(self) -> list[dict[str, str]]:
        """Of each row, in the table's order, its labels on the row axes."""
        names = [axis.name for axis in self.row_axes]
        combinations = product(*([value.label for value in axis.values] for axis in self.row_axes))
        return [dict(zip(names, labels, strict=True)) for labels in combinations]

    @property
    def rows(self) -> list[str]:
        """The labels of all rows."""
        return [self.row_label(labels) for labels in self.row_labels]


def number_of(value: Any) -> float | None:
    """A setting's or a label's value as a finite number, also where YAML reads it as a text; None if it is none.

    Example:
        >>> number_of("1e-3"), number_of(2), number_of(True), number_of("inf"), number_of("linear probe")
        (0.001, 2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def value_text(value: Any) -> str:
    """Returns a setting's value as the command line takes it: a text as it is, any other value as JSON.

    Raises:
        GPartError: if JSON has no form for it, as for a date or infinity.

    Example:
        >>> value_text("glue/rte"), value_text([1, 2]), value_text(None), value_text(5.0e-3)
        ('glue/rte', '[1, 2]', 'null', '0.005')
    """
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise GPartError(
            f"{value!r} ({type(value).__name__}) has no form on a command line; put it in quotes"
        ) from None
