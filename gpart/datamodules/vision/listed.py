"""A folder of pictures with a table of their names and labels, in the layout of Hugging Face's ``imagefolder``.

Invariant: a picture is listed once. What is wrong with a line of the table is told with the line's number.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpart.errors import GPartError

NAMES = ("metadata.csv", "metadata.jsonl")
COLUMNS = ("file_name", "label")


def table_in(folder: Path) -> Path | None:
    """The table of a folder, if it has one."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def read_list(table: Path, part: str) -> tuple[dict[str, list[Path]], list[str]]:
    """Reads the files of each class, and what is wrong with lines of the table.

    Args:
        table: the file, with the columns ``file_name`` (below the table's folder) and ``label``.
        part: the part of the data that it is read for, for messages.

    Raises:
        GPartError: if it can't be read or lacks a column.
    """
    found: dict[str, list[Path]] = {}
    wrong, seen = [], set()
    for line, (name, label) in _lines(table):
        file = table.parent / str(name)
        text = str(label).strip() if isinstance(label, (str, int)) else ""
        if not isinstance(name, str) or not file.is_file():
            wrong.append(f"{part}: line {line} of {table}: there is no file file_name={name!r}")
        elif not text:
            wrong.append(f"{part}: line {line} of {table}: {name} has no class, but label={label!r}")
        elif file in seen:
            wrong.append(f"{part}: line {line} of {table}: {name} is listed twice")
        else:
            seen.add(file)
            found.setdefault(text, []).append(file)
    return {name: sorted(found[name]) for name in sorted(found)}, wrong


def _lines(table: Path) -> Iterator[tuple[int, tuple[Any, Any]]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
        if table.suffix == ".csv":
            reader = csv.DictReader(text.splitlines())
            rows: list[tuple[int, Any]] = [(reader.line_num, row) for row in reader]
        else:
            rows = [(at, json.loads(line)) for at, line in enumerate(text.splitlines(), start=1) if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise GPartError(f"{table} can't be read: {error}") from error
    for line, row in rows:
        if not isinstance(row, dict) or not set(COLUMNS) <= set(row):
            raise GPartError(f"line {line} of {table} must have {' and '.join(COLUMNS)}, got {row}")
        yield line, (row["file_name"], row["label"])
