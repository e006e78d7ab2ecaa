"""A user's own questions: columns as found, bad rows named before the first step in all parts, and what is held out."""

from __future__ import annotations

import csv
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from gpart.datamodules import QuestionDataModule
from gpart.errors import GPartError, GPartFileError
from gpart.lightning_modules import CausalLM


class Module:
    """Stands for the LightningModule that looks for final answers."""

    hparams: dict[str, Any] = {}  # noqa: RUF012
    final_answer = staticmethod(CausalLM.final_answer)


class Run:
    """Stands for a Trainer."""

    is_global_zero, world_size, global_rank, lightning_module = True, 1, 0, Module()
    strategy = SimpleNamespace(root_device=torch.device("cpu"))


@pytest.fixture(scope="module")
def model(math_folders: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(math_folders.tokenizer(tmp_path_factory.mktemp("own") / "model"))


@pytest.fixture
def data(model: str) -> Any:
    def make(path: Any, judged: bool = True, **more: Any) -> QuestionDataModule:
        own = QuestionDataModule(path, **{"model": model, "batch_size": 4, "eval_batch_size": 4, **more})
        if judged:
            own.trainer = Run()
        return own

    return make


def rows_of(count: int, first: int = 0, names: tuple[str, str] = ("question", "answer")) -> list[dict[str, Any]]:
    return [{names[0]: f"What is {n} plus 1?", names[1]: f"{n} + 1 = {n + 1}.\n#### {n + 1}"} for n in range(first, first + count)]  # fmt: skip


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(own: QuestionDataModule, name: str) -> list[str]:
    return [one["question"] for one in own.questions[name]]


def texts(own: QuestionDataModule, part: str) -> set[str]:
    """The questions of a part for the loss, read back from its tokens."""
    tokenizer = own.conversations().tokenizer
    whole = tokenizer.batch_decode(own.parts[part]["input_ids"][:], skip_special_tokens=True)
    return {re.search(r"Question: (.*?)\nAnswer:", text)[1] for text in whole}


# Files and columns


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        return jsonl(path, rows)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv"])
def test_files_of_each_kind_are_read_alike(kind: str, data: Any, tmp_path: Path) -> None:
    own = data(write(tmp_path / f"own.{kind}", rows_of(40)))
    own.setup("fit")
    assert {part: len(own.parts[part]) for part in own.parts} == {"train": 30, "val": 10}
    assert texts(own, "train") | texts(own, "val") == {row["question"] for row in rows_of(40)}


PAIRS = [("query", "response"), ("prompt", "completion"), ("instruction", "output"), ("problem", "solution")]


@pytest.mark.parametrize("names", [*PAIRS, ("question", "solution")])
def test_the_columns_are_found_and_said(
    names: tuple[str, str], data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = jsonl(tmp_path / "own.jsonl", [{**row, "level": 1} for row in rows_of(20, names=names)])
    own = data(path)
    with caplog.at_level(logging.INFO):
        own.setup("fit")
    assert f"{path}: questions in '{names[0]}' and answers in '{names[1]}'" in caplog.text
    assert texts(own, "val") <= {row[names[0]] for row in rows_of(20, names=names)}


def test_where_several_could_be_meant_they_are_named(data: Any, tmp_path: Path) -> None:
    rows = [{**row, "solution": row["answer"], "answer": "5"} for row in rows_of(20)]
    path = jsonl(tmp_path / "own.jsonl", rows)
    with pytest.raises(
        GPartError, match=r"\['answer', 'solution'\] of them could be the answer: name it, --data.answer"
    ):
        data(path).setup("fit")
    data(path, answer="solution").setup("fit")
    with pytest.raises(GPartError, match=r"has no column answer='steps'; it has \['question', 'answer', 'solution'\]"):
        data(path, answer="steps").setup("fit")
    with pytest.raises(GPartError, match=r"\['text', 'answer'\]; none of them is called the question: name it"):
        data(jsonl(tmp_path / "odd.jsonl", rows_of(20, names=("text", "answer")))).setup("fit")


def test_a_test_file_may_call_its_columns_otherwise(data: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "own.jsonl", rows_of(20))
    test = jsonl(tmp_path / "test.jsonl", rows_of(5, 100, ("problem", "solution")))
    own = data(path, test_path=test)
    own.setup("test")
    assert questions(own, "test") == [f"What is {n} plus 1?" for n in range(100, 105)]
    (loader,) = own.test_dataloader()
    batch = next(iter(loader))
    assert batch["benchmark"] == ["test"] * 4
    assert batch["reference"][batch["idx"].index(0)] == "100 + 1 = 101.\n#### 101"


def test_an_instruction_with_an_input_is_refused(data: Any, tmp_path: Path) -> None:
    rows = [{**row, "input": ""} for row in rows_of(20, names=("instruction", "output"))]
    path = jsonl(tmp_path / "own.jsonl", rows)
    data(path).setup("fit")
    rows[3]["input"] = "a table"
    with pytest.raises(GPartError, match=r"row 4 \(line 4\): the column 'instruction' must .* adds 'a table'"):
        data(jsonl(path, rows)).setup("fit")


def test_a_file_that_is_not_there_is_named(data: Any, tmp_path: Path) -> None:
    with pytest.raises(GPartFileError, match=r"no file and no folder .*gone\.jsonl"):
        data(tmp_path / "gone.jsonl").setup("fit")


# Bad rows

BAD = {
    "no question": ({"question": " ", "answer": "#### 1"}, "column 'question' is empty, got ' '"),
    "no answer": ({"question": "One?", "answer": None}, "column 'answer' is empty, got nothing"),
    "a number": ({"question": "One?", "answer": 1}, "column 'answer' must be a text, got 1"),
    "a list": ({"question": ["One?"], "answer": "#### 1"}, "column 'question' must be a text, got ['One?']"),
    "no final answer": ({"question": "One?", "answer": "It is 1."}, "column 'answer' has no final answer after '####'"),
    "a missing column": ({"question": "One?"}, "column 'answer' is empty, got nothing"),
    "no object": ("One?", "expected an object with a value for each column, got 'One?'"),
}


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_of_any_part_is_named_before_the_first_step(kind: str, part: str, data: Any, tmp_path: Path) -> None:
    row, said = BAD[kind]
    for at, name in enumerate(("train", "val", "test")):
        rows = rows_of(10, 100 * at)
        jsonl(tmp_path / f"{name}.jsonl", [*rows[:6], row, *rows[6:]] if name == part else rows)
    with pytest.raises(GPartError, match=re.escape(f"{tmp_path}/{part}.jsonl, row 7 (line 7): {said}")):
        data(tmp_path).setup("fit")
    own = data(tmp_path, on_bad_row="skip")
    with pytest.warns(UserWarning, match=rf"1 row was left out.*{part}\.jsonl, row 7"):
        own.setup("fit")
    assert [len(own.parts["train"]), len(own.parts["val"]), len(own.questions["test"])] == [10, 10, 10]


def test_a_line_that_is_no_json_is_named(data: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "own.jsonl", rows_of(20))
    path.write_text(path.read_text() + '{"question": "On\n')
    with pytest.raises(GPartError, match=r"own\.jsonl, row 21 \(line 21\): no JSON"):
        data(path).setup("fit")


def test_a_module_that_scores_otherwise_needs_no_final_answers(data: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "own.jsonl", [{**row, "answer": "Yes."} for row in rows_of(20)])
    data(path, judged=False).setup("fit")
    with pytest.raises(GPartError, match=r"row 1 .*has no final answer"):
        data(path).setup("fit")


def test_without_final_answers_the_loss_alone_measures(data: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "own.jsonl", [{**row, "answer": "Yes."} for row in rows_of(20)])
    own = data(path, final_answers=False, test_held_out=0.2)
    own.setup("fit")
    assert {part: len(own.parts[part]) for part in own.parts} == {"train": 12, "val": 4}
    assert own.questions == {}
    with pytest.raises(GPartError, match="test scores final answers, and final_answers is false"):
        own.setup("test")


def test_a_file_of_which_nothing_can_be_used_is_refused(data: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "own.jsonl", [{"question": "One?", "answer": "one"}] * 3)
    with pytest.raises(GPartError, match=r"own\.jsonl: none of its 3 rows can be used; questions in 'question'"):
        data(path, on_bad_row="skip").setup("fit")


# Parts


def test_the_parts_share_no_question_and_come_from_texts_and_seed(data: Any, tmp_path: Path) -> None:
    rows = rows_of(100)
    path = jsonl(tmp_path / "own.jsonl", rows)
    one = data(path, test_held_out=0.2)
    one.setup("fit")
    parts = {"train": texts(one, "train"), "val": texts(one, "val"), "test": set(questions(one, "test"))}
    assert {name: len(part) for name, part in parts.items()} == {"train": 60, "val": 20, "test": 20}
    assert len(set.union(*parts.values())) == 100

    turned = data(jsonl(tmp_path / "turned.jsonl", rows[::-1]), test_held_out=0.2)
    turned.setup("fit")
    assert set(questions(turned, "test")) == parts["test"]
    assert texts(turned, "val") == parts["val"]
    other = data(path, test_held_out=0.2, seed=1)
    other.setup("test")
    assert set(questions(other, "test")) != parts["test"]
    assert "train" not in other.parts
    alone = data(path, test_held_out=0.2)
    alone.setup("test")
    assert set(questions(alone, "test")) == parts["test"]


def test_a_question_that_is_repeated_stays_together(data: Any, tmp_path: Path) -> None:
    rows = [{**row, "question": f" {row['question'].upper()}"} for row in rows_of(40)]
    own = data(jsonl(tmp_path / "own.jsonl", [*rows_of(40), *rows]), test_held_out=0.25, held_out=0.3)
    own.setup("fit")
    asked = [text.strip().upper() for text in questions(own, "test")]
    assert len(asked) == 20
    assert len(set(asked)) == 10
    assert {part: len(own.parts[part]) for part in own.parts} == {"train": 42, "val": 18}


def test_a_test_question_that_is_trained_on_is_a_bad_row(data: Any, tmp_path: Path) -> None:
    path, test = jsonl(tmp_path / "own.jsonl", rows_of(20)), jsonl(tmp_path / "test.jsonl", rows_of(3, 18))
    with pytest.raises(GPartError, match=r"own\.jsonl, row 19 .* asks the same as .*test\.jsonl, row 1"):
        data(path, test_path=test).setup("fit")
    own = data(path, test_path=test, on_bad_row="skip")
    with pytest.warns(UserWarning, match="2 rows were left out"):
        own.setup("fit")
    assert {part: len(own.parts[part]) for part in own.parts} == {"train": 13, "val": 5}


@pytest.mark.parametrize(("count", "held"), [(60, 15), (400, 50), (700, 70)])
def test_enough_is_held_out_to_choose_by(count: int, held: int, data: Any, tmp_path: Path, model: str) -> None:
    own = data(jsonl(tmp_path / "own.jsonl", rows_of(count)))
    own.setup("fit")
    assert len(own.parts["val"]) == held


def test_too_little_is_refused_with_the_smallest_fraction(data: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "own.jsonl", rows_of(700))
    with pytest.raises(
        GPartError, match=r"held_out=0.05 holds 35 of 700 rows out.* fraction is 0.072, .*files called train and val"
    ):
        data(path, held_out=0.05).setup("fit")
    own = data(path, held_out=0.072)
    own.setup("fit")
    assert len(own.parts["val"]) == 50


def test_some_of_them_are_asked(data: Any, tmp_path: Path) -> None:
    path, test = jsonl(tmp_path / "own.jsonl", rows_of(60)), jsonl(tmp_path / "test.jsonl", rows_of(9, 100))
    own = data(path, test_path=test, val_questions=3, test_questions=4, train_size=10)
    own.setup("fit")
    assert len(own.parts["train"]) == 10
    assert set(questions(own, "held_out")) < texts(own, "val")
    assert len(questions(own, "held_out")) == 3
    assert len(questions(own, "test")) == 4
    _, asked = own.val_dataloader()
    assert next(iter(asked))["benchmark"] == ["held_out"] * 3


def test_a_file_without_a_test_part_says_how_to_get_one(data: Any, tmp_path: Path) -> None:
    own = data(jsonl(tmp_path / "own.jsonl", rows_of(20)))
    own.setup("fit")
    for ask in (own.check_test, lambda: own.setup("test")):
        with pytest.raises(GPartError, match=r"own\.jsonl has no part to test on: give --data.test_path FILE"):
            ask()


def test_a_folder_has_parts_by_its_files(data: Any, tmp_path: Path) -> None:
    for at, name in enumerate(("train", "validation", "test")):
        jsonl(tmp_path / f"{name}.jsonl", rows_of(10 + at, 100 * at))
    own = data(tmp_path)
    own.setup("fit")
    assert [len(own.parts["train"]), len(own.parts["val"]), len(own.questions["test"])] == [10, 11, 12]


def test_only_a_test_part_is_nothing_to_train_on(data: Any, tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", rows_of(10))
    with pytest.raises(GPartError, match=r"no rows to train on, but only the parts \['test'\]"):
        data(tmp_path).setup("fit")


# Prediction


def test_every_question_is_asked_and_needs_no_answer(data: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "new.jsonl", [{"id": "a", "question": f"What is {n}?"} for n in range(9)])
    own = data(path)
    own.setup("predict")
    batches = list(own.predict_dataloader())
    assert sorted(idx for batch in batches for idx in batch["idx"]) == list(range(9))
    assert {name for batch in batches for name in batch["benchmark"]} == {"own"}
    assert not any("reference" in batch for batch in batches)
    for batch in batches:
        assert batch["question"] == [f"What is {idx}?" for idx in batch["idx"]]
        assert batch["rows"] == [{"id": "a", "question": f"What is {idx}?"} for idx in batch["idx"]]


def test_answers_beside_the_questions_are_not_looked_at(data: Any, tmp_path: Path) -> None:
    own = data(jsonl(tmp_path / "own.jsonl", [{**row, "answer": 3} for row in rows_of(4)]), answer="steps")
    own.setup("predict")
    assert len(own.questions["own"]) == 4


def test_a_bad_question_to_answer_is_named_or_left_out(data: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "new.jsonl", [{"question": "One?"}, {"question": ""}, {"question": "Three?"}])
    with pytest.raises(GPartError, match=r"new\.jsonl, row 2 \(line 2\): column 'question' is empty, got ''"):
        data(path).setup("predict")
    own = data(path, on_bad_row="skip")
    with pytest.warns(UserWarning, match="1 row was left out"):
        own.setup("predict")
    assert sorted(one["idx"] for one in own.questions["own"]) == [0, 2]  # places in the file


# Settings


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"on_bad_row": "drop"}, "on_bad_row must be one of .*got 'drop'"),
        ({"held_out": 1.0}, "got 1.0"),
        ({"test_held_out": 0.0}, "got 0.0"),
        ({"test_path": "t.jsonl", "test_held_out": 0.2}, "test_path=t.jsonl is the test part, so test_held_out=0.2"),
        ({"val_questions": 2, "final_answers": False}, "val_questions=2 are scored by final answers"),
        ({"prompt": "Q"}, "prompt must have {question} in it, got 'Q'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_named(more: dict[str, Any], said: str) -> None:
    with pytest.raises(GPartError, match=said):
        QuestionDataModule("own.jsonl", **more)


def test_the_tokenizer_follows_the_models_setting(model: str, tmp_path: Path) -> None:
    own = QuestionDataModule(str(jsonl(tmp_path / "own.jsonl", rows_of(20))))
    with pytest.raises(GPartError, match="model=None of the data, and the LightningModule's is None: name one"):
        own.setup("fit")
    own.trainer = type("OfModel", (Run,), {"lightning_module": type("M", (Module,), {"hparams": {"model": model}})()})
    own.setup("fit")
    assert own.hparams_initial["model"] == model  # Lightning's loggers compare it with the LightningModule's


def test_packing_is_as_for_the_benchmarks(data: Any, tmp_path: Path) -> None:
    own = data(jsonl(tmp_path / "own.jsonl", rows_of(40)), judged=False, packing=True, max_length=128)
    own.setup("fit")
    batches = list(own.train_dataloader())
    assert sum(len(batch["input_ids"]) for batch in batches) < 36
    assert all("position_ids" in batch for batch in batches)


def test_a_question_of_val_that_is_in_test_is_told(data: Any, tmp_path: Path) -> None:
    for name, rows in (("train", rows_of(40)), ("val", rows_of(20, 40)), ("test", rows_of(20, 50))):
        jsonl(tmp_path / f"{name}.jsonl", rows)
    says = r"10 of the 20 rows that select the checkpoint .*val.jsonl, row 11 .* asks the same as .*test.jsonl, row 1 "
    with pytest.warns(UserWarning, match=says):
        data(tmp_path).setup("fit")
