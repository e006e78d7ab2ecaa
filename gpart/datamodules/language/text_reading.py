"""From people's own files to the parts that a text DataModule has, with columns, task and classes.

Invariant: the classes are those of the rows that are trained on. Another one in a part that is scored could never be
right, so it is a bad row there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpart.datamodules.common.own_files import PARTS, read_parts
from gpart.datamodules.common.own_rows import NO_TEST, BadRows, Row, tell_scored_twice, without_leaks
from gpart.datamodules.common.splits import chosen
from gpart.datamodules.language.text_columns import SPLIT, Columns, choose_columns, part_of, unknown_parts
from gpart.datamodules.language.text_labels import Labels, Task, classes_of, guess_task
from gpart.datamodules.language.text_parts import Labelled, cut, strata_of
from gpart.datamodules.language.text_rows import labelled, with_texts
from gpart.errors import GPartError

_SAME = "has the same text as"
_SHOWN = 10  # classes in the line that tells what was found


@dataclass(frozen=True)
class Sources:
    """Where the rows are, and how they are read."""

    path: Any
    """All rows, or those that are trained on."""
    val: Any
    """Those that select the checkpoint; None without a source of their own."""
    test: Any
    """Those that are scored; None without a source of their own."""
    settings: Mapping[str, Any]
    """The DataModule's hyperparameters."""
    bad: BadRows

    @property
    def name(self) -> str:
        """Of ``path``, for messages."""
        return str(self.settings["path"])

    def parts(self, source: Any) -> dict[str, list[Row]]:
        """The rows of one source by part."""
        return read_parts(source, self.bad, self.settings["subset"])

    def whole(self, source: Any) -> list[Row]:
        """All rows of one source."""
        return [row for rows in self.parts(source).values() for row in rows]

    def columns(self, rows: list[Row], labelled: bool) -> Columns:
        """The columns of some rows."""
        text, label, split = (self.settings[name] for name in ("text", "label", "split"))
        return choose_columns(rows, text, label, split, labelled)


@dataclass(frozen=True)
class Found:
    """What was found in the sources."""

    columns: Columns
    labels: Labels
    parts: dict[str, list[Labelled]]

    def __str__(self) -> str:
        """As it is told, in a line."""
        says = [str(self.columns), self.labels.task]
        if self.columns.guessed:
            says[0] += f" ({' and '.join(map(repr, self.columns.guessed))} guessed)"
        if names := self.labels.names:
            counts: Counter[int] = Counter()
            for some in self.parts.values():
                for one in some:
                    counts.update(
                        [at for at, on in enumerate(one.label) if on]
                        if isinstance(one.label, list)
                        else [int(one.label)]
                    )
            listed = ", ".join(f"{name} {counts[at]}" for at, name in enumerate(names[:_SHOWN]))
            says.append(f"{len(names)} classes: {listed}{', ...' if len(names) > _SHOWN else ''}")
        return "; ".join([*says, ", ".join(f"{part} {len(some)}" for part, some in self.parts.items()) + " rows"])


def read_labelled(sources: Sources, known: Labels | None, stage: str) -> Found:
    """Reads and checks every part.

    Args:
        sources: where they are.
        known: the task and the classes that the model has, if it says.
        stage: ``test`` alone reads no other part where the model has said its classes.

    Raises:
        GPartError: if a row is bad, or columns, task, classes or parts can't be told.
    """
    raw: dict[str, list[Row]] = {}
    if not (stage == "test" and sources.test is not None and known is not None):
        raw = sources.parts(sources.path)
    own = {"val": sources.val, "test": sources.test}
    raw |= {
        part: sources.whole(source) for part, source in own.items() if source is not None and (raw or part == stage)
    }
    columns = sources.columns([row for rows in raw.values() for row in rows], labelled=True)
    if columns.split is None and "" in raw:
        _refuse_unknown([row for some in raw.values() for row in some], columns)
    if columns.split and "" in raw:
        raw = {**_by_column(raw.pop(""), columns.split, sources.bad), **raw}
    rows = {part: with_texts(some, columns.texts, sources.bad) for part, some in raw.items()}
    trained = next((rows[part] for part in ("", "train", "test") if part in rows), [])
    labels = _find_labels(trained, str(columns.label), known, sources.settings)
    parts = {part: labelled(some, columns.texts, labels, sources.bad) for part, some in rows.items()}
    parts = _cut(parts, labels, sources)
    tell_scored_twice(parts, _SAME)
    if stage == "test" and "test" not in parts:
        raise GPartError(NO_TEST.format(sources.name))
    for part, some in parts.items():
        if not some:
            raise GPartError(f"{sources.name}: no row is left in the part {part!r}")
    return Found(columns, labels, parts)


def read_unlabelled(sources: Sources) -> tuple[Columns, list[Row]]:
    """Reads all rows of ``path``, in order, for predictions.

    Raises:
        GPartError: if a row is bad, or the columns can't be told.
    """
    rows = sources.whole(sources.path)
    columns = sources.columns(rows, labelled=False)
    rows = with_texts(rows, columns.texts, sources.bad)
    if not rows:
        raise GPartError(f"{sources.name} has no row with a text")
    return columns, rows


def _by_column(rows: list[Row], column: str, bad: BadRows) -> dict[str, list[Row]]:
    """Rows by the part that their column names."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        name = part_of(row.values.get(column))
        if name is None:
            bad.add(row, column, f"names no part ({', '.join(PARTS)})")
        else:
            parts.setdefault(name, []).append(row)
    return parts


def _refuse_unknown(rows: list[Row], columns: Columns) -> None:
    """Checks that no column of parts is left that was not understood: its rows would all be trained on.

    Raises:
        GPartError: if there is one, with what it holds.
    """
    unknown = unknown_parts(row.values[SPLIT] for row in rows if row.values.get(SPLIT) is not None)
    if unknown and SPLIT not in (*columns.texts, columns.label):
        raise GPartError(
            f"{rows[0].file}: the column {SPLIT!r} has {', '.join(map(repr, unknown[:_SHOWN]))}, and the names of parts are"
            f" {', '.join(PARTS)}: change them, or say which column has the parts, as in --data.split COLUMN; --data.split="
            " with nothing behind it where none has"
        )


def _find_labels(rows: list[Row], column: str, known: Labels | None, settings: Mapping[str, Any]) -> Labels:
    separator, asked = settings["separator"], settings["task"]
    if known is not None and asked not in (None, known.task):
        raise GPartError(f"the model's task is {known.task!r}, and the data's is task={asked!r}")
    values = [row.values.get(column) for row in rows]
    task: Task = known.task if known else asked or guess_task(values, column, separator)
    labels = Labels(task, column, known.names if known else (), separator)
    if task == "regression" or labels.names:
        return labels
    return Labels(task, column, classes_of(rows, labels), separator)


def _cut(parts: dict[str, list[Labelled]], labels: Labels, sources: Sources) -> dict[str, list[Labelled]]:
    """The parts that there are; those that are missing are cut from the training rows."""
    settings = sources.settings
    if "" in parts:
        parts = {"train": parts[""], **{part: some for part, some in parts.items() if part}}
    if "train" not in parts:
        if set(parts) == {"test"}:
            return parts
        raise GPartError(f"{sources.name} has the parts {list(parts)}, and none is 'train'")
    scored = [one for name in ("val", "test") for one in parts.get(name, [])]
    parts = {**parts, "train": without_leaks(parts["train"], scored, _SAME, sources.bad)}
    held_out, test, seed = settings["held_out"], settings["test_held_out"], settings["seed"]
    for part, name in (("val", "held_out"), ("test", "test_held_out")):
        if part in parts and settings[name] is not None:
            raise GPartError(f"{name}={settings[name]} cuts a part {part!r}, and there is one already")
    if "val" not in parts:
        parts |= cut(parts["train"], held_out, test, labels.num_labels, seed)
    elif test is not None:
        raise GPartError(
            f"test_held_out={test} is cut together with the rows held out, and there is a part 'val': give test_path"
        )
    return {**parts, "train": _first(parts["train"], settings["train_size"], seed)}


def _first(rows: list[Labelled], size: int | None, seed: int) -> list[Labelled]:
    """So many of the rows, stratified; all for None."""
    if size is None:
        return rows
    if not 1 <= size <= len(rows):
        raise GPartError(f"train_size must be from 1 to the {len(rows)} rows not held out, got {size}")
    ids = [(stratum, f"{one.key}\t{at}") for at, (stratum, one) in enumerate(zip(strata_of(rows), rows, strict=True))]
    return [rows[at] for at in chosen(ids, range(len(rows)), size, seed)]
