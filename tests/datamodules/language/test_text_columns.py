"""What is guessed of people's own columns and labels, and what is refused with the candidates."""

from __future__ import annotations

from typing import Any

import pytest

from gpart.datamodules.common.own_rows import BadRows, Row
from gpart.datamodules.language.text_columns import Columns, choose_columns
from gpart.datamodules.language.text_labels import Labels, classes_of, guess_task, names_of
from gpart.errors import GPartError

SAYS = "my parcel has not come yet"
OTHER = "and nobody answers the phone"


def rows(count: int = 8, **columns: Any) -> list[Row]:
    """Rows whose values are made by a column's function of the row's number."""
    return [Row("t.csv", i + 1, i + 2, {name: make(i) for name, make in columns.items()}) for i in range(count)]


def text(i: int) -> str:
    return f"{SAYS} {i}"


def kind(i: int) -> str:
    return "ab"[i % 2]


def chosen(some: list[Row], **asked: Any) -> Columns:
    return choose_columns(some, **{"texts": None, "label": None, "split": None, "labelled": True, **asked})


@pytest.mark.parametrize(
    ("columns", "texts", "label"),
    [
        ({"id": str, "message": text, "team": kind}, ("message",), "team"),
        ({"number": str, "message": text, "team": kind}, ("message",), "team"),  # all different: no label
        ({"message": text, "note": lambda i: OTHER, "text": text, "y": kind}, ("text",), "y"),  # by its name
        ({"message": text, "score": lambda i: f"{i / 4}"}, ("message",), "score"),
        ({"message": text, "price": lambda i: i / 3}, ("message",), "price"),  # all different, but numbers
        ({"message": text, "topics": lambda i: [kind(i)]}, ("message",), "topics"),
        ({"sentence1": kind, "sentence2": kind, "label": kind}, ("sentence1", "sentence2"), "label"),
        ({"question": text, "passage": text, "y": kind}, ("question", "passage"), "y"),
        ({"text": text, "label": kind, "other": kind}, ("text",), "label"),
        ({"text": text, "label": text, "y": kind}, ("text",), "label"),  # texts may be the names of classes
        ({"text": text, "constant": lambda i: "x", "y": kind}, ("text",), "y"),
    ],
)
def test_what_can_only_be_one_column_is_guessed(columns: dict[str, Any], texts: tuple[str, ...], label: str) -> None:
    found = chosen(rows(**columns))
    assert (found.texts, found.label) == (texts, label)
    assert found.guessed == (*texts, label)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": text, "b": text, "y": kind}, r"several columns of t.csv have texts, \['a', 'b'\].*--data.text a,"),
        ({"x": kind, "y": kind}, r"no column of t.csv has texts; it has \['x', 'y'\].*--data.text"),
        (
            {"a": text, "x": kind, "y": kind},
            r"several columns of t.csv could be the label, \['x', 'y'\].*--data.label x",
        ),
        ({"a": text, "n": str}, r"no column of t.csv looks like a label; it has \['a', 'n'\].*--data.label n"),
        ({"a": text, "label": kind, "class": kind}, r"could be the label, \['label', 'class'\]"),
    ],
)
def test_several_candidates_or_none_are_refused_with_their_names(columns: dict[str, Any], said: str) -> None:
    with pytest.raises(GPartError, match=said):
        chosen(rows(**columns))


def test_what_is_named_is_taken_and_the_rest_guessed() -> None:
    some = rows(a=text, b=text, x=kind, y=kind)
    assert chosen(some, texts=["b", "a"], label="y") == Columns(("b", "a"), "y", None, ())
    assert chosen(rows(a=text, b=text, y=kind), texts=["b"]).guessed == ("y",)
    for asked, said in (
        ({"texts": ["c"]}, r"no column 'c'; it has \['a', 'b', 'x', 'y'\]"),
        ({"texts": ["a"], "label": "z"}, "no column 'z'"),
        ({"texts": ["a"], "label": "a"}, "column 'a' can't be two of"),
        ({"texts": ["a"], "label": "x", "split": "nowhere"}, "no column 'nowhere'"),
    ):
        with pytest.raises(GPartError, match=said):
            chosen(some, **asked)


def test_a_column_of_parts_is_seen_by_its_values() -> None:
    parts = rows(text=text, label=kind, split=lambda i: ["train", "dev"][i % 2])
    assert chosen(parts).split == "split"
    assert chosen(rows(text=text, label=kind, split=kind)).split is None


def test_new_rows_need_no_label_and_keep_one_that_is_there() -> None:
    assert chosen(rows(id=str, message=text), labelled=False).label is None
    assert chosen(rows(message=text), label="team", labelled=False).label is None
    assert chosen(rows(message=text, team=kind), label="team", labelled=False).label == "team"
    assert chosen(rows(a=text, x=kind, y=kind), labelled=False).label is None


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["a", "b", None], "classification"),
        ([True, False], "classification"),
        (["1", "2", "5"], "classification"),
        ([1.0, 2.0, None], "classification"),
        (["0.5", "1", "x"] + ["2.5"] * 20, "regression"),  # the x is then a bad row
        (["0.5", "x", "y"], "classification"),
        ([["a"], []], "multi-label"),
    ],
)
def test_the_task_is_what_the_labels_look_like(values: list[Any], task: str) -> None:
    assert guess_task(values, "y", None) == task


def test_many_whole_numbers_could_be_either_and_are_refused() -> None:
    assert guess_task(list(range(20)), "y", None) == "classification"
    with pytest.raises(
        GPartError, match=r"'y' has whole numbers of 21 kinds.*--data.task classification or .* regression"
    ):
        guess_task(list(range(21)), "y", None)


def test_several_classes_come_from_a_list_or_a_text() -> None:
    assert names_of("a| b |", "|") == ["a", "b"]
    assert (names_of(None, "|"), names_of(None, None), names_of("a", None)) == ([], None, None)
    assert (names_of(["a", 3], None), names_of(["a", None], None)) == (["a", "3"], None)
    labels = Labels("multi-label", "y", ("a", "b", "c"), "|")
    assert labels.encode(Row("t", 1, 2, {"y": "c|a"}), BadRows("error").add) == [1.0, 0.0, 1.0]
    assert labels.encode(Row("t", 1, 2, {"y": None}), BadRows("error").add) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("task", "value", "said"),
    [
        (
            "classification",
            "c",
            r"t.csv, row 3 \(line 4\): column 'y' has 'c', which is none of the 2 classes \(a, b\), got 'c'",
        ),
        ("classification", None, "column 'y' has no label, got nothing"),
        ("classification", "  ", "column 'y' has no label, got '  '"),
        ("regression", "three", "column 'y' has no number, got 'three'"),
        ("regression", True, "column 'y' has no number, got True"),
        ("regression", float("inf"), "column 'y' has no number, got inf"),
        ("regression", None, "column 'y' has no number, got nothing"),
        ("multi-label", ["a", "d"], "column 'y' has 'd', which is none of the 2"),
        ("multi-label", "a", "column 'y' has no list of labels, got 'a'"),
    ],
)
def test_a_bad_label_is_named_or_left_out(task: Any, value: Any, said: str) -> None:
    labels, row = Labels(task, "y", ("a", "b")), Row("t.csv", 3, 4, {"y": value})
    with pytest.raises(GPartError, match=said):
        labels.encode(row, BadRows("error").add)
    bad = BadRows("skip")
    assert labels.encode(row, bad.add) is None
    assert bad.count == 1


@pytest.mark.parametrize("value", ["3", 3, 3.0, " 3 "])
def test_whole_numbers_are_the_same_class_however_they_are_written(value: Any) -> None:
    assert Labels("classification", "y", ("2", "3")).encode(Row("t", 1, 2, {"y": value}), BadRows("error").add) == 1


def test_the_classes_are_sorted_and_at_least_two() -> None:
    some = rows(12, y=lambda i: str(i))
    assert classes_of(some, Labels("classification", "y")) == tuple(map(str, range(12)))
    assert classes_of(rows(y=lambda i: [kind(i), "z"]), Labels("multi-label", "y")) == ("a", "b", "z")
    with pytest.raises(GPartError, match=r"column 'y' has 1 kinds of label, \['x'\]"):
        classes_of(rows(y=lambda i: "x"), Labels("classification", "y"))
