"""Stratified parts of a data set.

Invariant: which rows are chosen depends on the rows' ids, their strata and the seed alone, not on the rows' order, a
library's random generator or the platform.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

Row = tuple[int, int | str]
"""A row's stratum and its id, which is unlike every other row's."""


def check_held_out(held_out: float) -> None:
    """Checks the setting, before any row is read.

    Raises:
        ValueError: if it is no part.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a part of the training set, above 0 and below 1, got {held_out}")


def hold_out(rows: Sequence[Row], part: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions of the rows that stay and of those held out, each in the rows' order.

    ``round(part * len(rows))`` rows are held out, at least 1, each stratum in its proportion.

    Args:
        rows: (stratum, id) of each row.
        part: what is held out, above 0 and below 1.
        seed: what the choice comes from.

    Raises:
        ValueError: if nothing would stay.

    Example:
        >>> stay, held = hold_out([(i % 2, i) for i in range(20)], 0.2, seed=0)
        >>> len(stay), len(held), sum(i % 2 for i in held)
        (16, 4, 2)
    """
    size = max(1, round(part * len(rows)))
    if size >= len(rows):
        raise ValueError(f"held_out={part} of {len(rows)} rows leaves none to train on")
    held = chosen(rows, range(len(rows)), size, seed)
    out = set(held)
    return [at for at in range(len(rows)) if at not in out], held


def chosen(rows: Sequence[Row], among: range | list[int], size: int, seed: int) -> list[int]:
    """``size`` of the positions ``among``, each stratum in its proportion, in the rows' order; of a smaller size, a part.

    Each stratum's rows are put in the order of SHA-256 over seed and id; row k (from 0) of a stratum of n is due at
    (k + 1/2) / n, and those due first are chosen.
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


def split_names(found: Sequence[str], place: str) -> dict[str, list[str] | None]:
    """Which of a data set's own splits are trained on and which is the test.

    The test is ``test``, and then a validation split is trained on too, since the part that chooses the checkpoint is
    held out by our own rule; without ``test``, the validation split is the test; without either there is none.

    Args:
        found: the splits' names.
        place: the data set, for messages.

    Raises:
        ValueError: if there is no ``train``.

    Example:
        >>> split_names(["train", "validation", "test"], "a data set")
        {'train': ['train', 'validation'], 'test': ['test']}
        >>> split_names(["train"], "a data set")
        {'train': ['train'], 'test': None}
    """
    if "train" not in found:
        raise ValueError(f"{place} has no split 'train'; it has {list(found)}")
    validation = [name for name in ("validation", "val") if name in found]
    if "test" in found:
        return {"train": ["train", *validation], "test": ["test"]}
    return {"train": ["train"], "test": validation[:1] or None}
