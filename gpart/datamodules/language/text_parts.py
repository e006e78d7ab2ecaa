"""Cuts people's own rows into a part to train on, one that selects the checkpoint, and one that is scored.

Invariant: which part a row is in depends on its texts, the labels and the seed alone, not on the order of the rows.
Rows with the same texts, but for case and white space, are in the same part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from gpart.datamodules.common.own_rows import Row
from gpart.datamodules.common.splits import chosen, hold_out, useful_size

_BINS = 10  # of a regression's labels, for strata


class Labelled(NamedTuple):
    """A row with its label."""

    row: Row
    key: str
    """Its texts, without what does not count."""
    label: int | float | list[float]


def cut(
    rows: list[Labelled], fraction: float | None, test: float | None, classes: int, seed: int
) -> dict[str, list[Labelled]]:
    """Cuts rows into ``train``, ``val`` and, if ``test`` is a fraction, ``test``; stratified.

    Args:
        rows: all of them.
        fraction: how many are held out to select the checkpoint; None takes a tenth, or as many as are needed.
        test: how many are held out to be scored, first.
        classes: the number of classes; 1 for a regression.
        seed: of the choice.

    Raises:
        GPartError: if too few rows would be held out to choose by, with the smallest fraction that is enough.
    """
    first = {one.key: at for at, one in reversed(list(enumerate(rows)))}  # each text's first row
    distinct = [rows[at] for at in sorted(first.values())]
    strata = strata_of(distinct)
    ids = [(stratum, one.key) for stratum, one in zip(strata, distinct, strict=True)]
    left, tested = list(range(len(ids))), set[str]()
    if test is not None:
        left, out = hold_out(ids, test, seed)
        tested = {ids[at][1] for at in out}
    size = useful_size(fraction, len(ids), classes, "give a file of its own, --data.val_path FILE", len(left))
    held = chosen([ids[at] for at in left], range(len(left)), size, seed)
    validated = {ids[left[at]][1] for at in held}
    parts: dict[str, list[Labelled]] = {name: [] for name in ("train", "val", *(() if test is None else ("test",)))}
    for one in rows:
        parts["test" if one.key in tested else "val" if one.key in validated else "train"].append(one)
    return parts


def strata_of(rows: Sequence[Labelled]) -> list[int]:
    """The stratum of each row: its class, the rarest of its classes, or the tenth of the labels that its own is in."""
    if not rows:
        return []
    label = rows[0].label
    if isinstance(label, list):
        counts = Counter(at for one in rows for at, on in enumerate(_flags(one)) if on)
        return [
            min((at for at, on in enumerate(_flags(one)) if on), key=lambda at: counts[at], default=-1) for one in rows
        ]
    if isinstance(label, int):
        return [int(one.label) for one in rows]  # type: ignore[arg-type]  # a number, as the first
    order = sorted(range(len(rows)), key=lambda at: (rows[at].label, rows[at].key))
    bins = [0] * len(rows)
    for rank, at in enumerate(order):
        bins[at] = _BINS * rank // len(rows)
    return bins


def _flags(one: Labelled) -> list[float]:
    return one.label if isinstance(one.label, list) else []
