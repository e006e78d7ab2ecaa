"""How many of a user's own rows are held out: one rule for texts, pictures and questions."""

from __future__ import annotations

import pytest

from gpart.datamodules.common.splits import useful_size
from gpart.errors import GPartError


@pytest.mark.parametrize(
    ("held_out", "rows", "classes", "size"),
    [
        (None, 4000, 2, 400),  # a tenth
        (None, 500, 2, 50),
        (None, 400, 2, 50),  # a tenth would be 40
        (None, 200, 2, 50),
        (None, 199, 2, 50),  # a quarter, rounded up
        (None, 60, 2, 15),
        (None, 60, 12, 24),  # two of each class
        (None, 60, 1, 15),  # no classes
        (None, 3, 1, 1),
        (0.0125, 4000, 2, 50),
        (0.3, 40, 2, 12),
    ],
)
def test_enough_is_held_out_to_choose_by(held_out: float | None, rows: int, classes: int, size: int) -> None:
    assert useful_size(held_out, rows, classes, "") == size


@pytest.mark.parametrize(
    ("held_out", "rows", "classes", "needed", "smallest"),
    [
        (0.04, 1000, 2, 50, 0.05),
        (0.2, 40, 2, 10, 0.25),
        (0.25, 40, 7, 14, 0.35),
        (0.07, 700, 1, 50, 0.072),  # rounded up
    ],
)
def test_too_little_is_refused_with_the_smallest_fraction_which_will_do(
    held_out: float, rows: int, classes: int, needed: int, smallest: float
) -> None:
    said = f"held_out={held_out} holds .* of {rows} rows out.* takes {needed} rows, .*--data.held_out {smallest}; or X$"
    with pytest.raises(GPartError, match=said):
        useful_size(held_out, rows, classes, "X")
    assert useful_size(smallest, rows, classes, "X") == needed


def test_what_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(
        GPartError, match=r"among 10 classes takes 20 rows, with others .* there are 10: add rows, or X"
    ):
        useful_size(None, 10, 10, "X")
    with pytest.raises(GPartError, match=r"held_out=0.8 holds 80 of 100 rows out"):
        useful_size(0.8, 100, 2, "X", left=80)
    assert useful_size(0.79, 100, 2, "X", left=80) == 79
    with pytest.raises(GPartError, match="and there are 25: add rows"):
        useful_size(None, 100, 2, "X", left=25)
