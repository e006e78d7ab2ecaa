"""What is done about rows that can't be used: all of them are named at once, before the first step.

Invariant: no row is left out without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from lightning_utilities.core.rank_zero import rank_zero_warn

from gpart.errors import GPartError

OnBadRow = Literal["error", "skip"]
"""Stop at bad rows, or leave them out and say how many."""

_NAMED = 5


def check_policy(on_bad_row: str) -> None:
    """Checks the setting.

    Raises:
        GPartError: if there is no such policy.
    """
    if on_bad_row not in get_args(OnBadRow):
        raise GPartError(f"on_bad_row must be one of {get_args(OnBadRow)}, got {on_bad_row!r}")


def refuse_or_skip(wrong: Sequence[str], on_bad_row: str, place: str) -> None:
    """Raises because of bad rows, or says that they are left out.

    Args:
        wrong: what is wrong, a text for each row.
        on_bad_row: the policy.
        place: the data's name, for messages.

    Raises:
        GPartError: if something is wrong and the policy is ``error``.

    Example:
        >>> refuse_or_skip(["train: cat/1.png: it is empty"], "error", "animals")
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: animals: 1 bad: train: cat/1.png: it is empty (mend this, or --data.on_bad_row skip)
    """
    if not wrong:
        return
    more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    named = "; ".join(wrong[:_NAMED]) + more
    if on_bad_row == "error":
        raise GPartError(f"{place}: {len(wrong)} bad: {named} (mend this, or --data.on_bad_row skip)")
    rank_zero_warn(f"{place}: {len(wrong)} left out: {named}")
