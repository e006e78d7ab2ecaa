"""Reads rows from people's own files: CSV, TSV, JSON lines, Parquet, folders of these, data sets, DataFrames.

Invariant: values come as the file has them. No text is taken for a number or for a missing value because it looks like
one, and a row that is not as long as the header is told, not filled up.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, load_from_disk
from pyarrow import parquet

from gpart.datamodules.common.data_sets import load_splits
from gpart.datamodules.common.own_rows import BadRows, Row, shown
from gpart.errors import GPartError, GPartFileError

PARTS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
"""What files, splits and values of a column are called, and the part that it means."""

_LONGEST_FIELD = 1 << 30  # csv's own limit of 131,072 characters is shorter than a long document


def read_parts(source: Any, bad: BadRows, subset: str | None = None) -> dict[str, list[Row]]:
    """Reads all rows of a source.

    Args:
        source: a file; a folder of files, or one that ``datasets`` has saved; the name of a data set on the hub; a
            DataFrame of pandas; a Dataset or DatasetDict of ``datasets``.
        bad: takes the rows that can't be read.
        subset: the configuration of a data set on the hub.

    Returns:
        The rows by part, ``train``, ``val`` and ``test``, or all under ``""`` if the source has no parts.

    Raises:
        GPartFileError: if there is nothing of that name.
        GPartError: if it can't be read, or a part is empty.
    """
    if isinstance(source, DatasetDict):
        return _of_splits(source, "the DatasetDict")
    if isinstance(source, Dataset):
        return {"": _of_dataset(source, "the Dataset")}
    if hasattr(source, "isna") and hasattr(source, "columns"):  # of pandas, which needs no import here
        return {"": _of_frame(source)}
    if isinstance(source, Mapping) or not isinstance(source, (str, Path)):
        raise GPartError(
            f"path must be a file, a folder, a data set's name, a DataFrame or a Dataset, got {type(source).__name__}"
        )
    path = Path(source).expanduser()
    if path.is_file():
        return {"": read_file(path, bad)}
    if path.is_dir():
        return _of_folder(path, bad)
    if path.suffix.lower() in READERS or path.is_absolute() or str(source).startswith("."):
        raise GPartFileError(f"there is no file and no folder {str(source)!r}, seen from {Path.cwd()}")
    name = repr(str(source))
    missing = f"{name} is no file, no folder and no data set on the hub"
    found = load_splits(str(source), subset, damaged=f"data set {name}", missing=missing)
    return _of_splits(found, str(source))


def read_file(path: Path, bad: BadRows) -> list[Row]:
    """Reads one file by its extension.

    Raises:
        GPartError: if its extension is not known, it can't be read, or it has no rows.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise GPartError(f"{path}: files of text data end in {', '.join(READERS)}, this one in {path.suffix!r}")
    try:
        rows = list(reader(path, bad))
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
        raise GPartError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of a block of it."
            f" Save it as UTF-8, or convert it: iconv -f {encoding} -t UTF-8 {path.name} > NEW{path.suffix}"
        ) from error
    if not rows:
        raise GPartError(f"{path} has no rows")
    return rows


def _delimited(path: Path, bad: BadRows) -> Iterator[Row]:
    """A header and rows: CSV, TSV."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=_delimiter(path, first), strict=True)
            yield from _fields(path, reader, bad)
    except csv.Error as error:
        raise GPartError(
            f"{path} can't be read as {path.suffix[1:].upper()}, near line {reader.line_num}: {error}"
        ) from error
    finally:
        csv.field_size_limit(before)


def _fields(path: Path, reader: Any, bad: BadRows) -> Iterator[Row]:
    # pandas leaves the name of its index empty, and a comma at a line's end makes a column without one.
    header = [name.strip() or f"column {at}" for at, name in enumerate(next(reader, []), start=1)]
    if len(set(header)) != len(header):
        raise GPartError(f"{path}: the first line names the columns, each once, got {header}")
    number = 0
    for fields in reader:
        if not fields:  # an empty line
            continue
        number += 1
        if len(fields) != len(header):
            place = Row(str(path), number, reader.line_num, {}).place
            bad.add_text(f"{place}: {len(fields)} values for the {len(header)} columns {header}, got {shown(fields)}")
            continue
        yield Row(str(path), number, reader.line_num, {k: v or None for k, v in zip(header, fields, strict=True)})


def _delimiter(path: Path, header: str) -> str:
    """A tab in TSV; in CSV a comma, or a semicolon or a tab where the header has that and no comma."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return next((sign for sign in ",;\t" if sign in header), ",")


def _json(path: Path, bad: BadRows) -> Iterator[Row]:
    """An object a line, or one list of objects."""
    with path.open(encoding="utf-8-sig") as file:
        if file.read(1) == "[":
            file.seek(0)
            try:
                found = json.load(file)
            except ValueError as error:
                raise GPartError(f"{path} can't be read as JSON: {error}") from error
            lines: Iterator[tuple[int | None, Any]] = ((None, value) for value in found)
        else:
            file.seek(0)
            lines = ((at, line) for at, line in enumerate(file, start=1) if line.strip())
        for number, (line, content) in enumerate(lines, start=1):
            value, place = content, Row(str(path), number, line, {}).place
            if line is not None:
                try:
                    value = json.loads(content.strip())
                except ValueError as error:
                    bad.add_text(f"{place}: no JSON, {error}, got {shown(content.rstrip())}")
                    continue
            if isinstance(value, dict):
                yield Row(str(path), number, line, value)
            else:
                bad.add_text(f"{place}: expected an object with a value for each column, got {shown(value)}")


def _parquet(path: Path, bad: BadRows) -> Iterator[Row]:  # noqa: ARG001  # as the other readers; its rows are whole
    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise GPartError(f"{path} can't be read as Parquet: {error}") from error
    yield from _of_dataset(Dataset(table), str(path))


READERS: dict[str, Callable[[Path, BadRows], Iterator[Row]]] = {
    **dict.fromkeys((".csv", ".tsv"), _delimited),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _json),
    ".parquet": _parquet,
}
"""By extension."""


def _of_dataset(data: Dataset, place: str) -> list[Row]:
    """A Dataset's rows; classes come by their names."""
    columns: dict[str, list[Any]] = data.to_dict()
    for name, feature in data.features.items():
        if isinstance(feature, ClassLabel):  # -1 is how data sets mark a row without a label
            names = [*feature.names, None]
            columns[name] = [None if one is None else names[max(one, -1)] for one in columns[name]]
    return _of_columns(columns, place)


def _of_frame(frame: Any) -> list[Row]:
    columns = {
        str(name): [
            None if missing else value
            for value, missing in zip(frame[name].tolist(), frame[name].isna().tolist(), strict=True)
        ]
        for name in frame.columns
    }
    return _of_columns(columns, "the DataFrame")


def _of_columns(columns: dict[str, list[Any]], place: str) -> list[Row]:
    rows = [
        Row(place, number, None, dict(zip(columns, values, strict=True)))
        for number, values in enumerate(zip(*columns.values(), strict=True), start=1)
    ]
    if not rows:
        raise GPartError(f"{place} has no rows")
    return rows


def _of_splits(data: DatasetDict, place: str) -> dict[str, list[Row]]:
    """The splits whose names mean a part; of several that mean the same, the first."""
    found: dict[str, list[Row]] = {}
    for name, split in data.items():
        if name in PARTS and PARTS[name] not in found:
            found[PARTS[name]] = _of_dataset(split, f"{place}, split {name}")
    if not found and len(data) == 1:
        name, split = next(iter(data.items()))
        return {"": _of_dataset(split, f"{place}, split {name}")}
    if not found:
        raise GPartError(f"{place} has the splits {list(data)}, and none is called {', '.join(PARTS)}")
    return found


def _of_folder(folder: Path, bad: BadRows) -> dict[str, list[Row]]:
    """A folder that ``datasets`` has saved, or one with files; these are parts if they are all called so."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return read_parts(load_from_disk(str(folder)), bad)
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in READERS and path.is_file()]
    if not files:
        raise GPartFileError(f"there is no file that ends in {', '.join(READERS)} in the folder {folder}")
    parts = [_part_of(path, folder) for path in files]
    if None in parts and set(parts) != {None}:
        unknown = [path.name for path, part in zip(files, parts, strict=True) if part is None]
        raise GPartError(
            f"{folder}: some files are called as parts ({', '.join(PARTS)}), and {unknown} are not: give one file, or"
            " a folder with either kind"
        )
    found: dict[str, list[Row]] = {}
    for path, part in zip(files, parts, strict=True):
        found.setdefault(part or "", []).extend(read_file(path, bad))
    return found


def _part_of(path: Path, folder: Path) -> str | None:
    """The part that a file's name begins with, as in train-00000-of-00002.parquet, or that its folder is called."""
    stem = path.stem.lower().replace("_", "-").replace(".", "-").split("-")[0]
    inside = path.parent.name.lower() if path.parent != folder else ""
    return PARTS.get(stem) or PARTS.get(inside)
