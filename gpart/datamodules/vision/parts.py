"""Which training pictures are trained on, and which select the checkpoint.

Invariant: only a picture's name, its class and the seed decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpart.datamodules.common.splits import chosen, hold_out, useful_size
from gpart.datamodules.vision.sources import HELD_OUT, OWN, Part
from gpart.errors import GPartError


def split(source: Part, settings: Mapping[str, Any], classes: int) -> tuple[list[int], list[int]]:
    """Splits the rows of the training part.

    Args:
        source: the training part.
        settings: the DataModule's: ``dataset``, ``held_out``, ``train_size`` and ``seed``.
        classes: the number of classes.

    Returns:
        The rows to train on, and those held out.

    Raises:
        GPartError: if too few would be held out or none would be left, or ``train_size`` is more than there are.
    """
    pictures, rows, held = source.pictures, source.rows, source.validation
    fraction, size, seed = settings["held_out"], settings["train_size"], settings["seed"]
    ids = pictures.rows()
    if settings["dataset"] == OWN[0] and (fraction is not None or not held):
        held = chosen(ids, rows, useful_size(fraction, len(rows), classes, "add a folder val beside train"), seed)
    elif fraction is not None or not held:
        _, places = hold_out([ids[row] for row in rows], HELD_OUT if fraction is None else fraction, seed)
        held = [rows[at] for at in places]
    out = set(held)
    rest = [row for row in rows if row not in out]
    if not rest:
        raise GPartError(f"{pictures.place} has 0 pictures to train on beside {len(held)} for validation")
    if size is not None:
        if not 1 <= size <= len(rest):
            raise GPartError(f"train_size must be from 1 to the {len(rest)} rows not held out, got {size}")
        rest = chosen(ids, rest, size, seed)
    return rest, held
