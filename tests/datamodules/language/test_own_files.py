"""People's own files: each format, encodings, quoted lines, missing values, folders, and what is refused by its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from gpart.datamodules.common.own_files import read_parts
from gpart.datamodules.common.own_rows import BadRows
from gpart.datamodules.language.text_labels import guess_task, name_of
from gpart.errors import GPartError, GPartFileError

TABLE = 'id,message,team\n1,"late, and\nwet",delivery\n2,NA,\n3,x,true\n'
ROWS = [
    {"id": "1", "message": "late, and\nwet", "team": "delivery"},
    {"id": "2", "message": "NA", "team": None},
    {"id": "3", "message": "x", "team": "true"},
]


def read(source: Any, policy: str = "error", subset: str | None = None) -> dict[str, list[dict[str, Any]]]:
    parts = read_parts(source, BadRows(policy), subset)
    return {part: [row[3] for row in rows] for part, rows in parts.items()}


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", TABLE.encode()),
        ("a.csv", b"\xef\xbb\xbf" + TABLE.encode()),
        ("a.csv", TABLE.replace("\n", "\r\n").replace("and\r\nwet", "and\nwet").encode()),
        ("a.csv", TABLE.replace(",", ";").replace("late;", "late,").encode()),
        ("a.tsv", TABLE.replace(",", "\t").replace("late\t", "late,").encode()),
        ("a.CSV", TABLE.encode() + b"\n\n"),
        ("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode()),
        ("a.ndjson", b"\xef\xbb\xbf" + "\n".join(json.dumps(row) for row in ROWS).encode()),
        ("a.json", json.dumps(ROWS, indent=1).encode()),
    ],
)
def test_a_file_gives_its_values_as_they_stand(name: str, content: bytes, tmp_path: Path) -> None:
    """A text that looks like a missing value, a number or a truth value stays a text; an empty field is missing."""
    assert read(written(tmp_path / name, content)) == {"": ROWS}


def test_a_parquet_file_a_frame_and_a_dataset_keep_their_types(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 1, "on": True}, {"text": None, "n": 2, "on": False}]
    data = Dataset.from_list(rows)
    data.to_parquet(tmp_path / "a.parquet")
    for source in (tmp_path / "a.parquet", data):
        assert read(source) == {"": rows}
    frame = pd.DataFrame({"text": ["a", None], "x": [float("nan"), 0.5], 3: [1, 2]}, index=[7, 8])
    assert read(frame) == {"": [{"text": "a", "x": None, "3": 1}, {"text": None, "x": 0.5, "3": 2}]}


def test_classes_come_by_their_names_and_minus_one_is_missing() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    data = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features)
    assert [row["label"] for row in read(data)[""]] == ["yes", "no", None]


def test_a_dataset_dict_and_its_saved_folder_have_their_parts(tmp_path: Path) -> None:
    split = Dataset.from_dict({"text": ["a"]})
    both = DatasetDict({"train": split, "validation": split, "test": split, "extra": split})
    both.save_to_disk(tmp_path / "saved")
    for source in (both, tmp_path / "saved"):
        assert list(read(source)) == ["train", "val", "test"]
    assert list(read(DatasetDict({"anything": split}))) == [""]
    with pytest.raises(GPartError, match=r"has the splits \['a', 'b'\], and none is called train"):
        read(DatasetDict({"a": split, "b": split}))


def test_a_folders_files_are_parts_by_their_names_or_all_rows(tmp_path: Path) -> None:
    line = "text\nx\n"
    for name in ("train-00000-of-00002.csv", "train-00001-of-00002.csv", "dev.csv", "test/part.csv"):
        written(tmp_path / "parts" / name, line)
    assert {part: len(rows) for part, rows in read(tmp_path / "parts").items()} == {"val": 1, "test": 1, "train": 2}
    written(tmp_path / "plain" / "b.csv", line)
    written(tmp_path / "plain" / "a.jsonl", '{"text": "y"}')
    written(tmp_path / "plain" / "notes.txt", "not read")
    assert read(tmp_path / "plain") == {"": [{"text": "y"}, {"text": "x"}]}
    written(tmp_path / "plain" / "train.csv", line)
    with pytest.raises(GPartError, match=r"some files are called as parts .* and \['a.jsonl', 'b.csv'\] are not"):
        read(tmp_path / "plain")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", 'text,team\n"two\nlines",x\nonly one\n', r"a.csv, row 2 \(line 4\): 1 values for the 2 columns"),
        ("a.csv", "text,team\na,x\nb,x,y\n", r"row 2 \(line 3\): 3 values for the 2 columns .*\['b', 'x', 'y'\]"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n', r"row 2 \(line 3\): no JSON, .*, got '{\"text\":'"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', r"row 2 \(line 2\): expected an object .*, got \['b'\]"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_or_left_out(name: str, content: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(GPartError, match=said):
        read(path)
    bad = BadRows("skip")
    assert len(read_parts(path, bad)[""]) == 1
    assert bad.count == 1
    with pytest.warns(UserWarning, match=f"1 row was left out.*{said}"):
        bad.tell()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text\nGrüße\n".encode("latin-1"), r"a.csv is not UTF-8: byte 0xfc .*iconv -f WINDOWS-1252"),
        ("a.csv", "text\nx\n".encode("utf-16"), "is not UTF-8: byte 0xff.*iconv -f UTF-16 -t UTF-8 a.csv"),
        ("a.jsonl", b'{"text": "\xe4"}\n', "is not UTF-8: byte 0xe4"),
        ("a.csv", b'text\n"never closed\n', "can't be read as CSV, near line 2: unexpected end"),
        ("a.csv", b"text,text\n1,2\n", r"names the columns, each once, got \['text', 'text'\]"),
        ("a.csv", b"text\n", "a.csv has no rows"),
        ("a.csv", b"", "names the columns|has no rows"),
        ("a.json", b"[{]", "can't be read as JSON"),
        ("a.parquet", b"nothing", "can't be read as Parquet"),
        ("a.xlsx", b"x", r"end in .csv, .tsv, .jsonl, .ndjson, .json, .parquet, this one in '.xlsx'"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_a_way_out(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(GPartError, match=said):
        read(written(tmp_path / name, content))


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(GPartFileError, match=r"no file and no folder 'tickets.csv', seen from"):
        read("tickets.csv")
    with pytest.raises(GPartFileError, match="no file and no folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(GPartFileError, match=r"there is no file that ends in .csv"):
        read(tmp_path)
    with pytest.raises(GPartFileError, match="is no file, no folder and no data set on the hub"):
        read("user/no-such-data-set")
    with pytest.raises(GPartError, match="got list"):
        read([{"text": "a"}])


def test_a_long_field_is_read_and_csvs_own_limit_stays(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    text = "word " * 40_000
    assert read(written(tmp_path / "a.csv", f"text\n{text}\n"))[""][0]["text"] == text
    assert csv.field_size_limit() == before


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(GPartError, match=r"on_bad_row must be one of \['error', 'skip'\], got 'drop'"):
        BadRows("drop")


def test_a_column_without_a_name_has_one_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",text,label,\n0,late,x,\n1,lost,y,\n", encoding="utf-8")
    assert read(tmp_path / "a.csv")[""] == [
        {"column 1": "0", "text": "late", "label": "x", "column 4": None},
        {"column 1": "1", "text": "lost", "label": "y", "column 4": None},
    ]


def test_a_missing_number_is_no_class() -> None:
    assert [name_of(value) for value in (float("nan"), "nan", 1.0)] == [None, "nan", "1"]


def test_decimal_commas_are_told() -> None:
    with pytest.raises(
        GPartError, match=r"'score' has numbers with a decimal comma, such as '0,5': write them with a point"
    ):
        guess_task(["0,5", " 1,25 ", "-3,0"], "score", None)
    assert guess_task(["0,5", "a,b", "c", "d"], "kind", None) == "classification"
