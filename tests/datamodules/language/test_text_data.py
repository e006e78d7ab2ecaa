"""TextDataModule: parts without leaks, every row checked before the first step, what a batch holds, what the model is told."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from gpart.datamodules import TextDataModule
from gpart.datamodules.common.own_rows import Row
from gpart.datamodules.language.text_parts import Labelled, cut, strata_of
from gpart.errors import GPartError
from gpart.lightning_modules import SequenceClassifier

WORDS = ["film", "story", "joy", "mess", "heart", "soul", "good", "bad", "dull", "fine"]


def said(i: int) -> str:
    return f"the {WORDS[i % 10]} is very {WORDS[i // 10 % 10]} and {WORDS[i // 100]}"


def table(path: Path, rows: list[list[Any]], header: tuple[str, ...] = ("id", "message", "team")) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def tickets(count: int = 120, first: int = 0) -> list[list[Any]]:
    return [[i, said(i), "abc"[i % 3]] for i in range(first, first + count)]


@pytest.fixture
def data(tiny_encoder: Path) -> Any:
    return lambda path, **more: TextDataModule(path, **{"model": str(tiny_encoder), **more})


def ready(data: TextDataModule, *stages: str) -> TextDataModule:
    data.prepare_data()
    for stage in stages:
        data.setup(stage)
    return data


def ids(data: TextDataModule) -> dict[str, set[int]]:
    return {name: set(data.parts[name]["idx"][:]) for name in ("train", "val", "test") if name in data.parts}


def test_a_file_is_cut_by_its_texts_and_the_seed_stratified(data: Any, tmp_path: Path) -> None:
    rows = tickets(240)
    own = ready(data(table(tmp_path / "a.csv", rows), test_held_out=0.25), "fit")
    assert (own.labels, own.num_labels, own.problem_type) == (("a", "b", "c"), 3, "single_label_classification")
    parts = ids(own)
    assert {name: len(part) for name, part in parts.items()} == {"train": 130, "val": 50, "test": 60}
    assert len(parts["train"] | parts["val"] | parts["test"]) == 240
    assert all(count >= 16 for count in Counter(own.parts["val"]["labels"][:]).values())
    # Other places of the rows, same parts: they go by the texts.
    turned = ready(data(table(tmp_path / "b.csv", rows[::-1]), test_held_out=0.25), "validate")
    assert {239 - at for at in ids(turned)["val"]} == parts["val"]
    assert ids(ready(data(str(tmp_path / "a.csv"), seed=1), "fit"))["val"] != parts["val"]
    assert ids(ready(data(str(tmp_path / "a.csv"), test_held_out=0.25), "test"))["test"] == parts["test"]


def test_repeated_texts_are_in_one_part(data: Any, tmp_path: Path) -> None:
    rows = tickets(60)
    again = [[100 + i, f"  {text.upper()}", team] for i, text, team in rows]
    own = ready(data(table(tmp_path / "a.csv", rows + again)), "fit")
    parts = ids(own)
    held = {at % 60 for at in parts["val"]}
    assert len(held) == 15
    assert len(parts["val"]) == 30
    assert not held & {at % 60 for at in parts["train"]}


def test_files_of_their_own_and_a_column_are_parts(data: Any, tmp_path: Path) -> None:
    paths = {
        name: table(tmp_path / f"{name}.csv", tickets(30, first))
        for name, first in (("train", 0), ("val", 40), ("test", 80))
    }
    own = ready(data(paths["train"], val_path=paths["val"], test_path=paths["test"]), "fit", "test")
    assert {name: len(part) for name, part in own.parts.items()} == {"train": 30, "val": 30, "test": 30}
    assert {name: len(part) for name, part in ready(data(str(tmp_path)), "fit").parts.items()} == dict.fromkeys(
        ["test", "train", "val"], 30
    )
    rows = [[*row, ["train", "val", "train"][i % 3]] for i, row in enumerate(tickets(90))]
    rows = [[i, text, "ab"[i % 2], part] for i, text, _, part in rows]
    one = ready(data(table(tmp_path / "one.csv", rows, ("id", "message", "team", "split"))), "fit")
    assert ids(one)["val"] == set(range(1, 90, 3))


def test_a_column_of_parts_is_known_in_any_case_and_other_names_are_refused(data: Any, tmp_path: Path) -> None:
    header = ("id", "message", "team", "split")

    def file(*names: str) -> str:
        rows = [[*row, names[i // 3 % len(names)]] for i, row in enumerate(tickets(90))]
        return table(tmp_path / "a.csv", rows, header)

    parts = ids(ready(data(file("Train", " VALIDATION", "Test"), label="team"), "fit"))
    assert {name: len(part) for name, part in parts.items()} == {"train": 30, "val": 30, "test": 30}
    said = r"a.csv: the column 'split' has 'holdout', and the names of parts are train, validation,"
    with pytest.raises(GPartError, match=said):
        ready(data(file("train", "holdout"), label="team"), "fit")
    paths = file("morning", "evening")
    own = ready(data(paths, split="", label="team"), "fit")
    assert own.hparams["split"] == ""
    assert len(own.parts["train"]) + len(own.parts["val"]) == 90
    assert ready(data(paths, label="split"), "fit").labels == ("evening", "morning")
    assert len(ready(data(paths), "predict").parts["predict"]) == 90
    # Files that are parts need no column of parts.
    for name, first in (("train", 0), ("test", 200)):
        rows = [[*row, "ab"[i % 2]] for i, row in enumerate(tickets(60, first))]
        (tmp_path / "parts").mkdir(exist_ok=True)
        table(tmp_path / "parts" / f"{name}.csv", rows, header)
    assert len(ready(data(str(tmp_path / "parts"), label="team"), "fit").parts["test"]) == 60


def test_a_text_that_is_trained_on_is_not_scored(data: Any, tmp_path: Path) -> None:
    train = table(tmp_path / "a.csv", tickets(60))
    test = table(tmp_path / "b.csv", [[0, said(59).title(), "a"], [1, said(200), "b"]])
    with pytest.raises(
        GPartError, match=r"a.csv, row 60 \(line 61\) is trained on, and has the same text as .*b.csv, row 1 "
    ):
        ready(data(train, test_path=test), "fit")
    with pytest.warns(UserWarning, match=r"1 row was left out.*a.csv, row 60"):
        own = ready(data(train, test_path=test, on_bad_row="skip"), "fit")
    assert 59 not in ids(own)["train"] | ids(own)["val"]


def test_a_text_of_val_that_is_in_test_is_told(data: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    train, val = table(tmp_path / "a.csv", tickets(60)), table(tmp_path / "b.csv", tickets(30, 70))
    ready(data(train, val_path=val, test_path=table(tmp_path / "c.csv", tickets(30, 110))), "fit")
    assert not [one for one in recwarn if "select the checkpoint" in str(one.message)]
    test = table(tmp_path / "c.csv", tickets(40, 95))
    says = r"5 of the 30 rows that select the checkpoint are in the test part too.*b.csv, row 26 .* has the same text as .*c.csv, row 1 "
    with pytest.warns(UserWarning, match=says):
        ready(data(train, val_path=val, test_path=test), "fit")


BAD = [
    ([7, "", "a"], r"row 121 \(line 122\): column 'message' has no text, got nothing"),
    ([7, "   ", "a"], "column 'message' has no text, got '   '"),
    (["", "", ""], r"row 121 \(line 122\) is empty"),
    ([7, said(500), ""], "column 'team' has no label, got nothing"),
]


@pytest.mark.parametrize(("row", "what"), BAD)
@pytest.mark.parametrize("part", ["path", "val_path", "test_path"])
def test_a_bad_row_of_any_part_is_found_before_the_first_step(
    row: list[Any], what: str, part: str, data: Any, tmp_path: Path
) -> None:
    good = table(tmp_path / "good.csv", tickets(60, 200))
    bad = table(tmp_path / "bad.csv", [*tickets(120), row])
    sources = {"path": good, "val_path": table(tmp_path / "v.csv", tickets(60, 300)), part: bad}
    with pytest.raises(GPartError, match=f"bad.csv.*{what}"):
        ready(data(**sources), "fit")
    with pytest.warns(UserWarning, match=f"1 row was left out, as on_bad_row=skip asks; the first: .*bad.csv.*{what}"):
        own = ready(data(**sources, on_bad_row="skip"), "fit")
    name = {"path": "train", "val_path": "val", "test_path": "test"}[part]
    assert ids(own)[name] == set(range(120))


def test_a_class_that_nothing_was_trained_on_is_a_bad_row_where_it_is_scored(data: Any, tmp_path: Path) -> None:
    train, test = table(tmp_path / "a.csv", tickets(60)), table(tmp_path / "b.csv", [[0, said(100), "d"]])
    with pytest.raises(
        GPartError, match=r"b.csv, row 1 .*: column 'team' has 'd', which is none of the 3 classes \(a, b, c\)"
    ):
        ready(data(train, test_path=test), "fit")


def test_a_regressions_numbers_are_floats_and_text_among_them_is_named(data: Any, tmp_path: Path) -> None:
    rows = [[i, said(i), f"{i / 4}"] for i in range(80)]
    own = ready(data(table(tmp_path / "a.csv", rows)), "fit")
    assert (own.problem_type, own.num_labels, own.labels) == ("regression", 1, ())
    batch = next(iter(own.val_dataloader()))
    assert batch["labels"].dtype == torch.float32
    assert own.label_mean() == pytest.approx(sum(own.parts["train"]["labels"]) / 60)
    whole = ready(
        data(table(tmp_path / "b.csv", [[i, said(i), i] for i in range(80)]), label="team", task="regression"), "fit"
    )
    assert next(iter(whole.val_dataloader()))["labels"].dtype == torch.float32
    with pytest.raises(GPartError, match=r"row 81 .* column 'team' has no number, got 'n/a'"):
        ready(data(table(tmp_path / "c.csv", [*rows, [80, said(80), "n/a"]])), "fit")


def test_a_held_out_part_too_small_to_choose_by_is_refused_with_the_smallest_fraction(
    data: Any, tmp_path: Path
) -> None:
    path = table(tmp_path / "a.csv", tickets(120))
    with pytest.raises(
        GPartError, match=r"held_out=0.1 holds 12 of 120 .* takes 30 .*--data.held_out 0.25; or .*val_path"
    ):
        ready(data(path, held_out=0.1), "fit")
    assert len(ready(data(path, held_out=0.25), "fit").parts["val"]) == 30
    with pytest.raises(GPartError, match=r"held_out=1 is a fraction|above 0 and below 1"):
        data(path, held_out=1.0)


@pytest.mark.parametrize(
    ("rows", "classes", "fraction", "held"),
    [
        (1000, 2, None, 100),
        (400, 2, None, 50),
        (100, 2, None, 25),
        (100, 2, 0.25, 25),
        (100, 20, None, 40),
        (400, 40, 0.2, 80),
    ],
)
def test_how_many_rows_are_enough_to_choose_by(rows: int, classes: int, fraction: float | None, held: int) -> None:
    some = [Labelled(Row("t", i + 1, None, {}), str(i), i % classes) for i in range(rows)]
    assert len(cut(some, fraction, None, classes, 0)["val"]) == held
    with pytest.raises(GPartError, match="the smallest useful fraction is"):
        cut(some, (min(held, max(50 if rows > 200 else rows // 4, 2 * classes)) - 1) / rows, None, classes, 0)


def test_too_few_rows_for_their_classes_are_refused() -> None:
    some = [Labelled(Row("t", i + 1, None, {}), str(i), i) for i in range(10)]
    with pytest.raises(GPartError, match=r"Choosing a checkpoint among 10 classes takes 20 rows.*there are 10"):
        cut(some, None, None, 10, 0)


def test_strata_are_classes_the_rarest_class_or_tenths() -> None:
    def row(label: Any) -> Labelled:
        return Labelled(Row("t", 1, None, {}), str(label), label)

    assert strata_of([row(2), row(0)]) == [2, 0]
    assert strata_of([row([1.0, 0.0]), row([1.0, 1.0]), row([0.0, 0.0])]) == [0, 1, -1]
    assert strata_of([row(float(i)) for i in reversed(range(20))]) == [i // 2 for i in reversed(range(20))]


def test_a_smaller_training_set_is_stratified_and_out_of_range_refused(data: Any, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", tickets(120))
    own = ready(data(path, train_size=30), "fit")
    assert Counter(own.parts["train"]["labels"][:]) == dict.fromkeys(range(3), 10)
    with pytest.raises(GPartError, match="train_size must be from 1 to the 90 rows not held out, got 91"):
        ready(data(path, train_size=91), "fit")


def test_predict_takes_every_row_in_order_with_all_that_it_has_and_needs_no_label(data: Any, tmp_path: Path) -> None:
    rows = [[i, said(i), "zzz" if i % 2 else ""] for i in (5, 3, 5)]
    own = ready(data(table(tmp_path / "new.csv", rows), batch_size=2, label="team"), "predict")
    batches = list(own.predict_dataloader())
    assert all("labels" not in batch for batch in batches)
    assert [at for batch in batches for at in batch["idx"]] == [0, 1, 2]
    assert [row for batch in batches for row in batch["rows"]] == [
        {"id": str(i), "message": text, "team": team or None} for i, text, team in rows
    ]
    assert (own.num_labels, own.labels, own.problem_type) == (None, (), None)
    with pytest.raises(GPartError, match=r"row 2 .*column 'message' has no text"):
        ready(data(table(tmp_path / "bad.csv", [[1, said(1), "a"], [2, "", "b"], [3, said(2), "a"]])), "predict")


def test_rows_of_several_files_say_which(data: Any, tmp_path: Path) -> None:
    for name in ("b", "a"):
        table(tmp_path / f"{name}.csv", [[name, said(ord(name)), ""]])
    (batch,) = ready(data(str(tmp_path)), "predict").predict_dataloader()
    assert [row["file"][-5:] for row in batch["rows"]] == ["a.csv", "b.csv"]
    assert batch["idx"] == [0, 0]


def test_pairs_are_cut_at_the_longer_text_and_several_classes_are_flags(data: Any, tmp_path: Path) -> None:
    rows = [[said(i), f"{said(i + 200)} {said(i)}", "ab"[i % 2]] for i in range(40)]
    path = table(tmp_path / "pairs.csv", rows, ("sentence1", "sentence2", "label"))
    own = ready(data(path, max_length=16), "fit")
    assert {len(tokens) for tokens in own.parts["train"]["input_ids"]} == {16}
    flags = [[said(i), "|".join("abc"[: i % 4])] for i in range(40)]
    many = ready(data(table(tmp_path / "m.csv", flags, ("message", "topics")), separator="|", label="topics"), "fit")
    assert (many.labels, many.problem_type) == (("a", "b", "c"), "multi_label_classification")
    batch = next(iter(many.val_dataloader()))
    assert (batch["labels"].shape[1], batch["labels"].dtype) == (3, torch.float32)


def test_a_frame_is_taken_and_the_hyperparameters_stay_plain(data: Any) -> None:
    frame = pd.DataFrame([[said(i), i % 2 == 0] for i in range(60)], columns=["message", "urgent"])
    own = ready(data(frame), "fit")
    assert own.labels == ("false", "true")
    assert dict(own.hparams)["path"] == "a DataFrame"
    assert {name: own.hparams[name] for name in ("text", "label", "task")} == {
        "text": ["message"],
        "label": "urgent",
        "task": "classification",
    }


def test_what_was_found_is_said_in_a_line(data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = table(tmp_path / "a.csv", tickets(120))
    with caplog.at_level("INFO"):
        ready(data(path), "fit")
    (line,) = [record.getMessage() for record in caplog.records if "classes" in record.getMessage()]
    assert line == (
        f"{path}: text 'message', label 'team' ('message' and 'team' guessed); classification;"
        " 3 classes: a 40, b 40, c 40; train 90, val 30 rows"
    )


class Told(LightningModule):
    """A module with hyperparameters, as a checkpoint gives them back."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.save_hyperparameters(more)
        self.layer = torch.nn.Linear(1, 1)

    def test_step(self, batch: Any, index: int) -> None:
        self.log("n", float(batch["labels"].sum()), reduce_fx="sum", batch_size=1)


def test_the_models_labels_are_the_datas_and_its_tokenizer_too(tiny_encoder: Path, tmp_path: Path) -> None:
    """A file to score may lack a class; its numbers are still the model's."""
    test = table(tmp_path / "b.csv", [[i, said(i), "c" if i else "b"] for i in range(3)])
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    own = TextDataModule(str(tmp_path / "not-read.csv"), label="team", test_path=test)
    module = Told(labels=["c", "x", "b"], num_labels=3, model=str(tiny_encoder))
    (scores,) = Trainer(accelerator="cpu", **quiet).test(module, datamodule=own, verbose=False)
    assert scores["n"] == 2.0  # c is 0 and b is 2
    assert own.hparams["model"] == str(tiny_encoder)
    assert own.labels == ("c", "x", "b")


def test_a_test_part_must_be_there_or_is_asked_for(data: Any, tmp_path: Path) -> None:
    own = ready(data(table(tmp_path / "a.csv", tickets(120))), "fit")
    for ask in (own.test_dataloader, lambda: own.setup("test")):
        with pytest.raises(GPartError, match=r"has no part to test on: give --data.test_path"):
            ask()


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"text": ["a", "b", "c"]}, "two for pairs, got 3"),
        ({"separator": ""}, "separator stands between labels"),
        ({"task": "tagging"}, "task must be one of"),
        (
            {"task": "regression", "separator": "|"},
            "separator='|' is for several labels a text, and task is 'regression'",
        ),
        ({"on_bad_row": "drop"}, "on_bad_row must be one of"),
        ({"test_held_out": 0.0}, "above 0 and below 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"path": None}, "path is the file, folder or data set"),
    ],
)
def test_a_setting_out_of_range_is_refused(more: dict[str, Any], what: str) -> None:
    with pytest.raises(GPartError, match=what.replace("|", r"\|")):
        TextDataModule(**{"path": "a.csv", **more})


def test_a_task_that_is_not_the_models_is_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    own = TextDataModule(table(tmp_path / "a.csv", tickets(120)), task="classification")
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    module = SequenceClassifier(str(tiny_encoder), num_labels=1)
    with pytest.raises(GPartError, match="the model's task is 'regression', and the data's is task='classification'"):
        Trainer(accelerator="cpu", max_steps=1, **quiet).fit(module, datamodule=own)
