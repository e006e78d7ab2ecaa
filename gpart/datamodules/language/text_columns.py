"""Which columns of people's own data are the texts, and which is the label.

Invariant: where several could be meant, none is taken: the error names them and the setting that chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gpart.datamodules.common.own_files import PARTS
from gpart.datamodules.common.own_rows import Row
from gpart.errors import GPartError

TEXTS = ("text", "sentence")
"""Names that a column of texts goes by; one of them is taken though there are others with texts."""
PAIRS = (
    *(("text1", "text2"), ("text_a", "text_b"), ("sentence1", "sentence2"), ("sentence_a", "sentence_b")),
    *(("question1", "question2"), ("premise", "hypothesis"), ("question", "sentence"), ("question", "passage")),
    *(("query", "passage"), ("query", "document")),
)
"""Names that the two columns of a pair go by."""
LABELS = ("label", "labels", "class", "target", "score")
"""Names that a column of labels goes by."""
SPLIT = "split"
"""What a column with names of parts is called."""

_LOOKED_AT = 1000
_WORDS = 3  # texts have at least this many words, on the average


@dataclass(frozen=True)
class Columns:
    """The columns by their use."""

    texts: tuple[str, ...]
    """One, or the two of a pair."""
    label: str | None
    """None where the rows have no labels."""
    split: str | None
    """The names of the parts, where a column has them; empty where it was said that none has."""
    guessed: tuple[str, ...] = ()
    """Of these, those that nobody named."""

    def __str__(self) -> str:
        """As it is told."""
        says = f"{'text' if len(self.texts) == 1 else 'texts'} {' and '.join(map(repr, self.texts))}"
        says += "" if self.label is None else f", label {self.label!r}"
        return says + (f", split {self.split!r}" if self.split else "")


def choose_columns(
    rows: Sequence[Row],
    texts: Sequence[str] | None,
    label: str | None,
    split: str | None,
    labelled: bool,
) -> Columns:
    """Takes the columns that are named, and guesses the others.

    Args:
        rows: some rows; the first thousand are looked at.
        texts: the names of the text columns; None guesses.
        label: the name of the label column; None guesses.
        split: the name of a column with names of parts; None takes one called ``split`` if it has such names only, and
            ``""`` none.
        labelled: whether a label is needed. Else a missing one is None.

    Raises:
        GPartError: if a named column is not there, or what is to be guessed has no or several candidates.

    Example:
        >>> rows = [Row("f", i, None, {"id": str(i), "message": f"my parcel is late {i}", "team": "ab"[i % 2]}) for i in range(9)]
        >>> print(choose_columns(rows, None, None, None, labelled=True))
        text 'message', label 'team'
    """
    place, some = rows[0].file, rows[:_LOOKED_AT]
    # JSON's objects may lack a key: the columns are those of all rows.
    names = list(dict.fromkeys(name for row in some for name in row.values))
    values = {name: [row.values[name] for row in some if row.values.get(name) is not None] for name in names}
    asked = [*(texts or ()), *([label] if label and labelled else []), *([split] if split else [])]
    if missing := [name for name in asked if name not in names]:
        raise GPartError(f"{place} has no column {missing[0]!r}; it has {names}")
    if twice := [name for name in asked if asked.count(name) > 1]:
        raise GPartError(f"column {twice[0]!r} can't be two of text={texts}, label={label!r} and split={split!r}")
    if split is None and SPLIT in names and SPLIT not in (*asked, label) and not unknown_parts(values[SPLIT]):
        split = SPLIT
    found_label = label if label in names else None
    free = [name for name in names if name not in (found_label, split, *(texts or ()))]
    guessed: list[str] = []
    if texts is None:
        among = [name for name in free if _is_text(name, values[name]) and (name not in LABELS or found_label)]
        texts = _texts_of(among, names, place)
        guessed += texts
        free = [name for name in free if name not in texts]
    if label is None:
        found_label = _label_of(free, values, names, place, labelled)
        guessed += [found_label] if found_label else []
    return Columns(tuple(texts), found_label, split, tuple(guessed))


def part_of(value: Any) -> str | None:
    """The part that a column's value names, whatever its case; None where it names none.

    >>> part_of(" Test "), part_of("Dev"), part_of("fold 3")
    ('test', 'val', None)
    """
    return PARTS.get(str("" if value is None else value).strip().lower())


def unknown_parts(values: Iterable[Any]) -> list[str]:
    """Those of a column's values that name no part, each once."""
    return [value for value in dict.fromkeys(map(str, values)) if part_of(value) is None]


def _texts_of(among: list[str], names: list[str], place: str) -> list[str]:
    by_name = [name for name in TEXTS if name in names and name in among][:1]
    # A pair is known by its names, however short its texts are.
    pairs = [list(pair) for pair in PAIRS if set(pair) <= set(names)]
    if len(pairs) == 1 and set(among) <= set(pairs[0]):
        return pairs[0]
    found = by_name or among
    if len(found) == 1:
        return found
    told = (
        f"several columns of {place} have texts, {found}"
        if found
        else f"no column of {place} has texts; it has {names}"
    )
    one = found[0] if found else names[0]
    raise GPartError(f"{told}: say which one is meant, as in --data.text {one}, or two of them, --data.text '[A, B]'")


def _label_of(
    free: list[str], values: dict[str, list[Any]], names: list[str], place: str, labelled: bool
) -> str | None:
    by_name = [name for name in LABELS if name in free]
    found = by_name if len(by_name) == 1 else [name for name in free if _is_label(name, values[name])]
    if len(found) == 1:
        return found[0]
    if not labelled:
        return None
    told = (
        f"several columns of {place} could be the label, {found}"
        if found
        else f"no column of {place} looks like a label; it has {names}"
    )
    one = found[0] if found else names[-1]
    raise GPartError(f"{told}: say which one it is, as in --data.label {one}")


def _is_text(name: str, values: list[Any]) -> bool:
    if not values or not all(isinstance(value, str) for value in values):
        return False
    return name in TEXTS or sum(len(value.split()) for value in values) >= _WORDS * len(values)


def _is_label(name: str, values: list[Any]) -> bool:
    """Whether values repeat, or are numbers with a fraction; not those of an id, of texts, or all alike."""
    if not values or name.lower() in ("id", "idx", "index"):
        return False
    if isinstance(values[0], list):
        return True
    kinds = len({repr(value) for value in values})
    fractions = any(isinstance(value, float) or (isinstance(value, str) and _is_fraction(value)) for value in values)
    return kinds > 1 and (2 * kinds <= len(values) or fractions) and not _is_text(name, values)


def _is_fraction(value: str) -> bool:
    try:
        return not float(value).is_integer()
    except (ValueError, OverflowError):
        return False
