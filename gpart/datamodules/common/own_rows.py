"""Rows of people's own data, with the places that they came from, and what is done about bad ones.

Invariant: a bad row is never used in silence. It is an error that names its place, column and value, or it is left out
and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, get_args

from lightning_utilities.core.rank_zero import rank_zero_warn

from gpart.errors import GPartError

Policy = Literal["error", "skip"]

NO_TEST = (
    "{} has no part to test on: give --data.test_path FILE; or --data.test_held_out FRACTION when training, and the same"
    " when testing"
)

_LONGEST = 60


class Row(NamedTuple):
    """A row as it was read."""

    file: str
    """The file's path, or what stands for it."""
    number: int
    """Its number in the file, from 1; a header is none."""
    line: int | None
    """The line of the file that it ends in, where the file has lines."""
    values: dict[str, Any]
    """By column. A missing value is None."""

    @property
    def place(self) -> str:
        """File, row and line, for messages.

        Example:
            >>> Row("tickets.csv", 3, 5, {}).place
            'tickets.csv, row 3 (line 5)'
        """
        return f"{self.file}, row {self.number}" + ("" if self.line is None else f" (line {self.line})")


class BadRows:
    """What is done about bad rows: the first is an error, or all are counted and told in one line.

    Args:
        policy: ``error`` or ``skip``.

    Raises:
        GPartError: if there is no such policy.

    Example:
        >>> bad = BadRows("error")
        >>> bad.add(Row("tickets.csv", 3, 4, {"team": "Sales"}), "team", "is none of the classes")
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: tickets.csv, row 3 (line 4): column 'team' is none of the classes, got 'Sales' (on_bad_row=skip leaves such rows out)
    """

    def __init__(self, policy: Policy) -> None:
        if policy not in get_args(Policy):
            raise GPartError(f"on_bad_row must be one of {list(get_args(Policy))}, got {policy!r}")
        self.policy = policy
        self.count = 0
        self._first = ""

    def add(self, row: Row, column: str, why: str) -> None:
        """Notes a bad row.

        Raises:
            GPartError: if the policy is ``error``.
        """
        self.add_text(f"{row.place}: column {column!r} {why}, got {shown(row.values.get(column))}")

    def add_text(self, message: str) -> None:
        """The same for a row that could not be read as one.

        Raises:
            GPartError: if the policy is ``error``.
        """
        if self.policy == "error":
            raise GPartError(f"{message} (on_bad_row=skip leaves such rows out)")
        self.count += 1
        self._first = self._first or message

    def tell(self) -> None:
        """Says how many rows were left out since it was last asked, and which was the first."""
        if self.count:
            rows = "1 row was" if self.count == 1 else f"{self.count} rows were"
            rank_zero_warn(f"{rows} left out, as on_bad_row=skip asks; the first: {self._first}")
        self.count, self._first = 0, ""


class WithKey(Protocol):
    """A row with what its texts are compared by."""

    @property
    def row(self) -> Row:
        """The row."""

    @property
    def key(self) -> str:
        """Its texts, see :func:`key_of`."""


K = TypeVar("K", bound=WithKey)


def key_of(texts: Sequence[str]) -> str:
    r"""Texts as they are compared: without what makes no other of them, case and white space.

    Example:
        >>> key_of(["My  parcel ", "IS late"])
        'my parcel\tis late'
    """
    return "\t".join(" ".join(text.casefold().split()) for text in texts)


def without_leaks(trained: Iterable[K], scored: Iterable[K], says: str, bad: BadRows) -> list[K]:
    """Rows to train on, without those whose texts stand in a part that is scored as well: these are bad rows.

    Args:
        trained: the rows to train on.
        scored: those of the other parts.
        says: what two such rows have in common, for the message, such as ``has the same text as``.
        bad: takes them.

    Raises:
        GPartError: if there is one, and ``bad`` does not take it.
    """
    elsewhere = {one.key: one.row for one in scored}
    kept = []
    for one in trained:
        if one.key in elsewhere:
            bad.add_text(f"{one.row.place} is trained on, and {says} {elsewhere[one.key].place}")
        else:
            kept.append(one)
    return kept


def tell_scored_twice(parts: Mapping[str, Sequence[WithKey]], says: str) -> None:
    """Warns where rows that select the checkpoint stand in the test part as well: its score is then not of new rows.

    Args:
        parts: the rows by part.
        says: what two such rows have in common, for the message, such as ``has the same text as``.
    """
    tested = {one.key: one.row for one in parts.get("test", ())}
    both = [one for one in parts.get("val", ()) if one.key in tested]
    if both:
        first = both[0]
        rank_zero_warn(
            f"{len(both)} of the {len(parts['val'])} rows that select the checkpoint are in the test part too, so that the test's"
            f" score is better than that of new rows: the first, {first.row.place}, {says} {tested[first.key].place}"
        )


def shown(value: Any) -> str:
    """A value for a message, cut where it is long.

    Example:
        >>> shown(None), shown("x" * 100)[:10]
        ('nothing', "'xxxxxxxxx")
    """
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."
