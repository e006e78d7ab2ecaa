"""Finds the pictures that can't be read, before the first step.

Invariant: a picture that passes can be read in training. A PNG is checked by the checksums of its chunks, which cover
all of its bytes; any other picture is decoded, a JPEG at an eighth of its size.

What it costs, on one core of the machine that this was written on, with files of 500 x 375 pixels in the page cache, in
seconds for 1,000 pictures: JPEG 1.0 (decoded whole: 1.2; its header alone, which misses a file cut short: 0.3), PNG 0.6
(decoded whole: 7.9), WebP 9 (decoded whole: 10). An epoch decodes each picture too, and resizes it besides. Decoding
releases Python's lock, so that the threads use all cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from lightning_utilities.core.rank_zero import rank_zero_warn

from gpart.datamodules.vision.reading import DAMAGED, Reader, on_one_line
from gpart.datamodules.vision.sources import Part
from gpart.errors import GPartError

Faults = dict[str, dict[int, str]]
"""For each part, the rows that can't be read, with the reason."""

_NAMED = 5


def fault_of(read: Reader, row: int) -> str | None:
    """Says why a row's picture can't be read; None if it can.

    Args:
        read: reads a picture as it is stored.
        row: the row.
    """
    try:
        with read(row) as image:
            if image.format == "PNG":
                image.verify()
            else:
                image.draft("RGB", (1, 1))  # only a JPEG's decoder can do less; the others do nothing here
                image.load()
            if image.mode == "F":
                raise GPartError("pixels are floating-point numbers, whose range is not known")
    except DAMAGED as error:
        return on_one_line(error)
    return None


def faults_of(read: Reader, rows: Sequence[int]) -> dict[int, str]:
    """The rows whose pictures can't be read, with the reason for each."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda row: fault_of(read, row), rows)
        return {row: fault for row, fault in zip(rows, found, strict=True) if fault is not None}


def checked(
    parts: Mapping[str, Part], on_bad_row: str, place: str, on_one_rank: Callable[[Callable[[], Faults]], Faults]
) -> dict[str, Part]:
    """The parts of a user's own pictures without those that can't be used.

    Args:
        parts: the parts by name.
        on_bad_row: the policy.
        place: the folder, for messages.
        on_one_rank: calls a function on the first rank and returns its result on every rank.

    Raises:
        GPartError: if some can't be used and the policy is ``error``, or no picture of a part or of a class is left.
    """
    faults = on_one_rank(lambda: {part: faults_of(own.pictures.read, own.rows) for part, own in parts.items()})
    wrong = [text for own in parts.values() for text in own.pictures.wrong]
    for part, own in parts.items():
        held = set(own.validation)
        wrong += [f"{'val' if row in held else part}: {own.pictures.names[row]}: {fault}" for row, fault in faults[part].items()]  # fmt: skip
    refuse_or_skip(list(dict.fromkeys(wrong)), on_bad_row, place)
    good = {}
    for part, own in parts.items():
        rows, validation = ([row for row in some if row not in faults[part]] for some in (own.rows, own.validation))
        names = own.pictures.classes if part == "train" else ()
        left = {own.pictures.labels[row] for row in rows}
        if missing := [name for label, name in enumerate(names) if label not in left]:
            raise GPartError(f"{place}: no picture of the classes {missing} is left to train on")
        if not rows:
            raise GPartError(f"{place}: none of the {len(own.rows)} pictures of {part} can be read")
        good[part] = replace(own, rows=rows, validation=validation)
    return good


def refuse_or_skip(wrong: Sequence[str], on_bad_row: str, place: str) -> None:
    """Raises because of what is wrong, or says that it is left out: all at once, since a folder may have many such files.

    Args:
        wrong: what is wrong, a text for each.
        on_bad_row: the policy.
        place: the data's name, for messages.

    Raises:
        GPartError: if something is wrong and the policy is ``error``.

    Example:
        >>> refuse_or_skip(["train: cat/1.png: it is empty"], "error", "animals")
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: animals: 1 bad: train: cat/1.png: it is empty (on_bad_row=skip leaves such pictures out)
    """
    if not wrong:
        return
    more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    named = "; ".join(wrong[:_NAMED]) + more
    if on_bad_row == "error":
        raise GPartError(f"{place}: {len(wrong)} bad: {named} (on_bad_row=skip leaves such pictures out)")
    rank_zero_warn(f"{place}: {len(wrong)} left out: {named}")
