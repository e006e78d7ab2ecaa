"""What people's own labels mean: classes, several classes for a text, or numbers; and which numbers training has for them.

Invariant: a label is never taken for another than it says. What fits no class, or is no number, is told with its place.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gpart.datamodules.common.own_rows import Row
from gpart.errors import GPartError

Task = Literal["classification", "multi-label", "regression"]

PROBLEMS: dict[Task, str] = {
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}
"""What Transformers calls each."""

_MOST_WHOLE = 20  # whole numbers are classes if they are of this many kinds at most: stars and marks, not prices
_COMMA = re.compile(r"[+-]?\d+,\d+")
_NUMBERS = 0.9  # a column is one of numbers if this share of it is; the others are then bad rows


def check_task(task: Task | None) -> None:
    """Checks the setting, before any row is read.

    Raises:
        GPartError: if there is no such task.
    """
    if task is not None and task not in get_args(Task):
        raise GPartError(f"task must be one of {list(get_args(Task))}, got {task!r}")


def guess_task(values: Sequence[Any], column: str, separator: str | None) -> Task:
    """Says what labels are, by their values.

    Lists, and texts with a separator, are several classes for a text. Numbers with a fraction are a regression; whole
    numbers of at most 20 kinds, and everything else, are classes.

    Args:
        values: the labels; None is a missing one.
        column: their column's name, for messages.
        separator: what stands between the classes of a text.

    Raises:
        GPartError: if whole numbers could be either, or numbers have a decimal comma.

    Example:
        >>> guess_task(["billing", "delivery"], "team", None), guess_task(["0.5", "1"], "score", None)
        ('classification', 'regression')
        >>> guess_task([["a", "b"], []], "topics", None), guess_task([1, 2, 5], "stars", None)
        ('multi-label', 'classification')
    """
    there = [value for value in values if value is not None]
    if separator is not None or any(isinstance(value, list) for value in there):
        return "multi-label"
    commas = [value for value in there if isinstance(value, str) and _COMMA.fullmatch(value.strip())]
    if commas and len(commas) >= _NUMBERS * len(there):
        raise GPartError(
            f"column {column!r} has numbers with a decimal comma, such as {commas[0]!r}: write them with a point, or say"
            " --data.task classification if they are names"
        )
    numbers = [number for value in there if (number := number_of(value)) is not None]
    if not numbers or len(numbers) < _NUMBERS * len(there):
        return "classification"
    if any(not number.is_integer() for number in numbers):
        return "regression"
    if (kinds := len(set(numbers))) > _MOST_WHOLE:
        raise GPartError(
            f"column {column!r} has whole numbers of {kinds} kinds, classes or a quantity: say --data.task"
            " classification or --data.task regression"
        )
    return "classification"


def number_of(value: Any) -> float | None:
    """A finite number, or a text that is one; None for anything else.

    Example:
        >>> number_of("3"), number_of(True), number_of("nan"), number_of("three")
        (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def name_of(value: Any) -> str | None:
    """The name of the class that a value means; None for a missing one.

    Example:
        >>> name_of(" billing "), name_of(3), name_of(3.0), name_of(True), name_of("")
        ('billing', '3', '3', 'true', None)
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isnan(value):
        return None  # as JSON and Parquet have a missing one; a text "NaN" stays one
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers and missing ones comes as floats
    name = "" if value is None else str(value).strip()
    return name or None


def names_of(value: Any, separator: str | None) -> list[str] | None:
    """The names of the classes of a text with several, maybe none; None for a missing value."""
    if isinstance(value, list):
        names = [name_of(one) for one in value]
        return None if None in names else [name for name in names if name is not None]
    if value is None or separator is None:
        # An empty field of CSV is none of the classes.
        return None if separator is None else []
    return [name for part in str(value).split(separator) if (name := name_of(part)) is not None]


def sorted_names(names: Iterable[str]) -> list[str]:
    """Names in their order: numbers by their size, all else by the alphabet.

    Example:
        >>> sorted_names(["10", "9", "9"]), sorted_names(["b", "a", "9"])
        (['9', '10'], ['9', 'a', 'b'])
    """
    found = sorted(set(names))
    if all(number_of(name) is not None for name in found):
        return sorted(found, key=float)
    return found


@dataclass(frozen=True)
class Labels:
    """The labels of a data set, which give each row's numbers."""

    task: Task
    column: str
    names: tuple[str, ...] = ()
    """The classes, in the order of their numbers."""
    separator: str | None = None

    @property
    def num_labels(self) -> int:
        """The number of classes, or 1 for a regression."""
        return len(self.names) or 1

    def encode(self, row: Row, bad: Callable[[Row, str, str], None]) -> Any:
        """A row's label: a class's number, a 0 or 1 for each class, or a number; None for a bad row.

        Args:
            row: the row.
            bad: is told of a bad one.
        """
        value = row.values.get(self.column)
        if self.task == "regression":
            number = number_of(value)
            if number is None:
                bad(row, self.column, "has no number")
            return number
        names = names_of(value, self.separator) if self.task == "multi-label" else [name_of(value)]
        if names is None or None in names:
            bad(row, self.column, "has no label" if self.task == "classification" else "has no list of labels")
            return None
        if outside := [name for name in names if name not in self.names]:
            listed = ", ".join(self.names[:10]) + (", ..." if len(self.names) > 10 else "")
            bad(row, self.column, f"has {outside[0]!r}, which is none of the {len(self.names)} classes ({listed})")
            return None
        if self.task == "classification":
            return self.names.index(names[0])
        return [float(name in names) for name in self.names]


def classes_of(rows: Iterable[Row], labels: Labels) -> tuple[str, ...]:
    """The classes that rows have, in their order.

    Raises:
        GPartError: if there is only one.
    """
    counts: Counter[str] = Counter()
    for row in rows:
        value = row.values.get(labels.column)
        one = name_of(value)
        counts.update(
            (names_of(value, labels.separator) or []) if labels.task == "multi-label" else [one] if one else []
        )
    if len(counts) < 2:
        raise GPartError(f"column {labels.column!r} has {len(counts)} kinds of label, {list(counts)}: it takes two")
    return tuple(sorted_names(counts))
