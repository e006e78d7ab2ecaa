"""A user's own questions: which columns hold them, and which rows can't be used.

Invariant: a row that can't be used is named with its file, its column and its value. No question that is trained on is in
another part; those in both the user's own ``val`` and ``test`` are counted in a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from gpart.datamodules.common.own_rows import BadRows, Row, key_of, tell_scored_twice, without_leaks
from gpart.datamodules.common.splits import hold_out, useful_size
from gpart.errors import GPartError

QUESTIONS = ("question", "query", "problem", "prompt", "instruction")
ANSWERS = ("answer", "response", "solution", "completion", "output")
"""What columns are called."""

_SAME = "asks the same as"

Judge = Callable[[str], "str | None"]
"""Finds the final answer in a text."""


class Usable(NamedTuple):
    """A row that can be used."""

    row: Row
    question: str
    answer: str | None
    """None where none is needed."""

    @property
    def key(self) -> str:
        """The question as it is compared."""
        return key_of([self.question])


class Columns(NamedTuple):
    """The columns of questions and answers."""

    question: str
    answer: str | None
    """None where none is needed."""

    def __str__(self) -> str:
        """As it is told, in a line."""
        return " and ".join(
            f"{kind} in {name!r}" for kind, name in zip(("questions", "answers"), self, strict=True) if name
        )


def find_columns(rows: list[Row], question: str | None, answer: str | None, answered: bool) -> Columns:
    """Finds the columns of some rows.

    Args:
        rows: those of one source.
        question: the column of questions, if the user names it.
        answer: that of answers.
        answered: whether answers are needed.

    Raises:
        GPartError: if there is no such column, or there are several.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    found = _column("question", question, QUESTIONS, names, rows[0].file)
    if found == "instruction":
        for row in rows:
            if row.values.get("input"):
                raise GPartError(
                    f"{row.place}: the column 'instruction' must hold whole questions, but 'input' adds"
                    f" {row.values['input']!r} to it"
                )
    return Columns(found, _column("answer", answer, ANSWERS, names, rows[0].file) if answered else None)


def _column(setting: str, named: str | None, known: tuple[str, ...], names: list[str], file: str) -> str:
    if named is not None:
        if named not in names:
            raise GPartError(f"{file} has no column {setting}={named!r}; it has {names}")
        return named
    found = [name for name in names if name in known]
    if len(found) != 1:
        how = f"{found} of them could be" if found else "none of them is called"
        raise GPartError(f"{file} has the columns {names}; {how} the {setting}: name it, --data.{setting} COLUMN")
    return found[0]


def usable(rows: list[Row], columns: Columns, bad: BadRows, final_answer: Judge | None) -> list[Usable]:
    """The rows that have what is needed; the others are bad.

    Args:
        rows: those of one source.
        columns: its columns.
        bad: takes the rows that have not.
        final_answer: finds the final answer that every answer must have; None if it need not.

    Raises:
        GPartError: if there is a bad row and ``bad`` does not take it, or no row is left.
    """
    found = []
    for row in rows:
        texts = [row.values.get(name) for name in columns if name]
        wrong = next(((name, why) for name, text in zip(columns, texts, strict=False) if (why := _fault(text))), None)
        if wrong:
            bad.add(row, str(wrong[0]), wrong[1])
        elif columns.answer and final_answer and final_answer(str(texts[1])) is None:
            bad.add(row, columns.answer, r"has no final answer after '####' or 'The answer is:', or in \boxed{...}")
        else:
            found.append(Usable(row, str(texts[0]), str(texts[1]) if columns.answer else None))
    if not found:
        raise GPartError(f"{rows[0].file}: none of its {len(rows)} rows can be used; {columns}")
    return found


def _fault(text: object) -> str:
    if not isinstance(text, str) and text is not None:
        return "must be a text"
    return "" if text and text.strip() else "is empty"


def cut(
    parts: dict[str, list[Usable]], held_out: float | None, test_held_out: float | None, seed: int, bad: BadRows
) -> dict[str, list[Usable]]:
    """Cuts ``test`` and ``val`` from the rows that belong to no part yet, or from those to train on.

    Args:
        parts: the rows by part, or under ``""``.
        held_out: the fraction that selects the checkpoint; None takes enough to choose by.
        test_held_out: the fraction that is scored; None takes none.
        seed: of the choice. A question's text and the seed alone decide where its rows go.
        bad: takes rows to train on whose question is in another part as well.

    Raises:
        GPartError: if too few rows would be held out, or there is a bad row and ``bad`` does not take it.
    """
    rest = [*parts.get("", []), *parts.get("train", [])]
    if not rest:
        raise GPartError(f"there are no rows to train on, but only the parts {sorted(parts)}")
    done = {name: list(found) for name, found in parts.items() if name in ("val", "test")}
    kept = without_leaks(rest, [one for found in done.values() for one in found], _SAME, bad)
    tell_scored_twice(done, _SAME)
    if not kept:
        raise GPartError(f"none of the {len(rest)} rows is left to train on")
    if test_held_out is not None and "test" not in done:
        kept, done["test"] = _apart(kept, test_held_out, seed)
    if "val" not in done:
        count = _distinct(kept)
        size = useful_size(held_out, count, 1, "give a folder with files called train and val")
        kept, done["val"] = _apart(kept, size / count, seed)
    return {"train": kept, **done}


def _distinct(rows: Iterable[Usable]) -> int:
    return len({one.key for one in rows})


def _apart(rows: list[Usable], fraction: float, seed: int) -> tuple[list[Usable], list[Usable]]:
    keys = list(dict.fromkeys(one.key for one in rows))
    out = {keys[at] for at in hold_out([(0, key) for key in keys], fraction, seed)[1]}
    return [one for one in rows if one.key not in out], [one for one in rows if one.key in out]
