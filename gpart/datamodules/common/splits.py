"""Stratified splits of a data set.

Invariant: which rows are chosen depends only on the rows' ids, their strata and the seed. It does not depend on the
order of the rows, on a library's random generator or on the platform.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

from gpart.errors import GPartError

# To choose a checkpoint by fewer rows is to choose by luck: at 50 rows, an accuracy of 90 % still has a standard error of
# four points. Of fewer than 200 rows, a quarter is held out, since those that are left are needed more.
ENOUGH = 50
_QUARTER, _TENTH, _OF_A_CLASS = 0.25, 0.1, 2

Row = tuple[int, int | str]
"""A row's stratum (usually its class) and its id, which no other row has."""


def check_held_out(held_out: float) -> None:
    """Checks the setting, before any row is read.

    Raises:
        GPartError: if it is not between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise GPartError(f"held_out is a fraction of the training set, above 0 and below 1, got {held_out}")


def hold_out(rows: Sequence[Row], part: float, seed: int) -> tuple[list[int], list[int]]:
    """Splits rows in two: those that stay, and those that are held out.

    ``round(part * len(rows))`` rows are held out, but at least 1. The strata keep their proportions.

    Args:
        rows: the (stratum, id) of each row.
        part: the fraction that is held out, above 0 and below 1.
        seed: the seed of the choice.

    Returns:
        The positions of the rows that stay, and of those held out, each in ascending order.

    Raises:
        GPartError: if no row would stay.

    Example:
        >>> stay, held = hold_out([(i % 2, i) for i in range(20)], 0.2, seed=0)
        >>> len(stay), len(held), sum(i % 2 for i in held)
        (16, 4, 2)
    """
    size = max(1, round(part * len(rows)))
    if size >= len(rows):
        raise GPartError(f"held_out={part} of {len(rows)} rows leaves none to train on")
    held = chosen(rows, range(len(rows)), size, seed)
    out = set(held)
    return [at for at in range(len(rows)) if at not in out], held


def useful_size(held_out: float | None, rows: int, classes: int, instead: str, left: int | None = None) -> int:
    """How many of a user's own rows to hold out: enough to choose a checkpoint by.

    By default this is a tenth. It is at least ``ENOUGH``, or a quarter where that is less, and two for each class.

    Args:
        held_out: the user's setting, as a fraction of ``rows``; None takes the default.
        rows: the number of rows; those of the same text count once.
        classes: the number of classes; 1 or 0 where there are none.
        instead: how to give rows to choose by that are not held out, for the message.
        left: how many of the rows are left after the test part was cut; None for all.

    Returns:
        A number below ``left``.

    Raises:
        GPartError: if the user's setting holds out too few, with the smallest useful fraction, or there are too few rows.

    Example:
        >>> [useful_size(None, rows, 2, "") for rows in (60, 400, 4000)], useful_size(None, 60, 12, "")
        ([15, 50, 400], 24)
    """
    left = rows if left is None else left
    needed = max(min(ENOUGH, math.ceil(_QUARTER * rows)), _OF_A_CLASS * classes if classes > 1 else 1)
    size = max(round(_TENTH * rows), needed) if held_out is None else round(held_out * rows)
    if needed <= size < left:
        return size
    asked = "" if held_out is None else f"held_out={held_out} holds {size} of {rows} rows out. "
    among = f" among {classes} classes" if classes > 1 else ""
    takes = f"{asked}Choosing a checkpoint{among} takes {needed} rows, with others to train on"
    if needed >= left:
        raise GPartError(f"{takes}, and there are {left}: add rows, or {instead}")
    smallest = math.ceil(1000 * needed / rows) / 1000
    raise GPartError(f"{takes}: the smallest useful fraction is {smallest}, --data.held_out {smallest}; or {instead}")


def chosen(rows: Sequence[Row], among: range | list[int], size: int, seed: int) -> list[int]:
    """Chooses ``size`` of the positions ``among``, so that the strata keep their proportions.

    A smaller size chooses a subset of what a larger one chooses. The rule: the rows of each stratum are sorted by the
    SHA-256 of seed and id. Row k (counted from 0) of a stratum of n rows has the rank (k + 1/2) / n, and the rows with
    the lowest ranks are chosen.

    Returns:
        The chosen positions, in ascending order.
    """
    strata = defaultdict(list)
    for at in among:
        strata[rows[at][0]].append(at)
    due: list[tuple[float, str, int]] = []
    for members in strata.values():
        ordered = sorted((_rank(rows[at][1], seed), at) for at in members)
        due += [((place + 0.5) / len(members), rank, at) for place, (rank, at) in enumerate(ordered)]
    return sorted(at for _, _, at in sorted(due)[:size])


def _rank(identity: int | str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{identity}".encode()).hexdigest()


def split_names(found: Sequence[str], place: str) -> dict[str, list[str]]:
    """Says which of a data set's own splits is trained on, which one selects the checkpoint, and which one is scored.

    If there is a ``test`` split, it is the test split, and a validation split selects the checkpoint. Without ``test``,
    the validation split is the test split. Without either, there is no test split.

    Args:
        found: the names of the data set's splits.
        place: the data set's name, for messages.

    Returns:
        Lists of split names under ``train``, ``validation`` and ``test``; empty where there is no such split.

    Raises:
        GPartError: if there is no ``train`` split.

    Example:
        >>> split_names(["train", "validation", "test"], "a data set")
        {'train': ['train'], 'validation': ['validation'], 'test': ['test']}
        >>> split_names(["train", "val"], "a data set")
        {'train': ['train'], 'validation': [], 'test': ['val']}
    """
    if "train" not in found:
        raise GPartError(f"{place} has no split 'train'; it has {list(found)}")
    validation = [name for name in ("validation", "val") if name in found]
    if "test" in found:
        return {"train": ["train"], "validation": validation, "test": ["test"]}
    return {"train": ["train"], "validation": [], "test": validation[:1]}


def splits_of(names: dict[str, list[str]], part: str) -> list[str]:
    """The splits that a part of a data set is read from, in their order.

    Args:
        names: what :func:`split_names` says.
        part: ``train``, which is followed by the validation split, or ``test``. Without a test split, ``test`` has the
            rows of ``train``: it is still to be cut from them.

    Example:
        >>> names = {"train": ["train"], "validation": ["validation"], "test": ["test"]}
        >>> splits_of(names, "train"), splits_of(names, "test"), splits_of({**names, "test": []}, "test")
        (['train', 'validation'], ['test'], ['train', 'validation'])
    """
    return (names["test"] if part == "test" else []) or [*names["train"], *names["validation"]]
