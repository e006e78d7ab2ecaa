"""Checks the rows of a folder in GLUE's layout, before any of them is trained on or scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gpart.errors import GPartError


def check_texts(texts: Mapping[str, Sequence[Any]], place: str) -> None:
    """Checks that every row has its texts. One text of a pair may be empty, as in QQP, but not missing.

    Args:
        texts: the columns by their names.
        place: of the rows, for messages.

    Raises:
        GPartError: if a row has none, with its number from 1, the column and the value.

    Example:
        >>> check_texts({"sentence": ["Good.", ""]}, "folder, split 'train'")
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: folder, split 'train', row 2: column 'sentence' has no text, got ''
    """
    for number, values in enumerate(zip(*texts.values(), strict=True), start=1):
        missing = [name for name, value in zip(texts, values, strict=True) if not isinstance(value, str)]
        if missing or not any(value.strip() for value in values):
            name = (missing or list(texts))[0]
            raise GPartError(f"{place}, row {number}: column {name!r} has no text, got {texts[name][number - 1]!r}")


def check_labels(labels: Sequence[Any], classes: int, place: str) -> None:
    """Checks that every label is a class's number, or a finite number for a regression, with ``classes=0``.

    Raises:
        GPartError: if one is not, with its row's number from 1 and the value.

    Example:
        >>> check_labels([1, 2], 0, "folder, split 'train'")
        >>> check_labels([1, 2], 2, "folder, split 'train'")
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: folder, split 'train', row 2: column 'label' must be a class from 0 to 1, got 2
    """
    wanted = f"a class from 0 to {classes - 1}" if classes else "a finite number"
    for number, label in enumerate(labels, start=1):
        if classes:
            fits = isinstance(label, int) and 0 <= label < classes
        else:
            fits = isinstance(label, (int, float)) and math.isfinite(label)
        if not fits or isinstance(label, bool):
            raise GPartError(f"{place}, row {number}: column 'label' must be {wanted}, got {label!r}")


def as_number(label: Any) -> float:
    """A label as a number; NaN for what is none, such as the labels of a split that is not scored.

    Example:
        >>> as_number(3), as_number(None)
        (3.0, nan)
    """
    return float(label) if isinstance(label, (int, float)) else math.nan
