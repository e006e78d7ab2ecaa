"""PredictionWriter: each extension, the rows' places, their order, and what can't be written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from pyarrow import parquet
from torch.utils.data import DataLoader
from transformers.modeling_outputs import SequenceClassifierOutput

from gpart.callbacks import PredictionWriter
from gpart.callbacks.packages import OfBoth
from gpart.callbacks.predictions import rows
from gpart.errors import GPartError
from gpart.lightning_modules.common.row_columns import beside, row_columns


class Says(LightningModule):
    """Returns what the batch holds."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch


def written(path: str | None, *batches: Any) -> None:
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = Trainer(accelerator="cpu", callbacks=[PredictionWriter(path)], **quiet)
    loader = DataLoader(list(batches), batch_size=None)
    trainer.predict(Says(), loader)


BATCHES = (
    {"text": ['a, "b"\nc', "ü"], "label": ["x", "y"], "p": [0.5, 1.0], "all": [["x", "y"], []]},
    {"text": ["\t"], "label": ["x"], "p": [0.25], "all": [["y"]]},
)
ROWS = [
    {"idx": 0, "text": 'a, "b"\nc', "label": "x", "p": 0.5, "all": ["x", "y"]},
    {"idx": 1, "text": "ü", "label": "y", "p": 1.0, "all": []},
    {"idx": 2, "text": "\t", "label": "x", "p": 0.25, "all": ["y"]},
]


def test_what_is_not_finite_is_null_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = {"p": torch.tensor([0.5, float("nan")]), "all": [[1.0, float("inf")], [{"a": float("-inf")}]]}
    lines = '{"idx": 0, "p": 0.5, "all": [1.0, null]}\n{"idx": 1, "p": null, "all": [{"a": null}]}\n'
    written(str(tmp_path / "out.jsonl"), batch)
    assert (tmp_path / "out.jsonl").read_text() == lines
    written(None, batch)
    assert lines in capsys.readouterr().out
    written(str(tmp_path / "out.csv"), batch)
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == ['0,0.5,"[1.0, null]"', '1,nan,"[{""a"": null}]"']


@pytest.mark.parametrize("extension", [".jsonl", ".csv", ".tsv", ".parquet", ".CSV"])
def test_each_extension_holds_the_same_rows_in_order(extension: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"out{extension}"
    for _ in range(2):  # a run again writes the file anew
        written(str(path), *BATCHES)
    if extension == ".jsonl":
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    elif extension == ".parquet":
        found = parquet.read_table(path).to_pylist()
    else:
        with path.open(newline="", encoding="utf-8") as file:
            texts = list(csv.DictReader(file, delimiter="\t" if extension == ".tsv" else ","))
        assert list(texts[0]) == list(ROWS[0])
        found = [{**row, "idx": int(row["idx"]), "p": float(row["p"]), "all": json.loads(row["all"])} for row in texts]
    assert found == ROWS


TENSORS = (torch.tensor([[0.5, 0.25], [1.0, 0.0]], requires_grad=True), torch.tensor([[2.0, 4.0]]).bfloat16())
VECTORS = [
    {"idx": 0, "prediction": [0.5, 0.25]},
    {"idx": 1, "prediction": [1.0, 0.0]},
    {"idx": 2, "prediction": [2.0, 4.0]},
]


@pytest.mark.parametrize("extension", [".jsonl", ".csv", ".parquet"])
def test_a_tensor_has_a_row_for_each_entry(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{extension}"
    written(str(path), *TENSORS)
    if extension == ".jsonl":
        found = [json.loads(line) for line in path.read_text().splitlines()]
    elif extension == ".parquet":
        found = parquet.read_table(path).to_pylist()
    else:
        with path.open(newline="") as file:
            found = [{name: json.loads(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
    assert found == VECTORS


@pytest.mark.parametrize(
    ("found", "want"),
    [
        (None, []),
        (torch.tensor([2, 1]), [{"prediction": 2}, {"prediction": 1}]),
        (np.array([[1], [0]]), [{"prediction": [1]}, {"prediction": [0]}]),
        (["ja", "nein"], [{"prediction": "ja"}, {"prediction": "nein"}]),
        (
            [{"boxes": torch.ones(1, 2), "score": np.float32(0.5)}, {"boxes": torch.ones(0, 2), "score": None}],
            [{"prediction": {"boxes": [[1.0, 1.0]], "score": 0.5}}, {"prediction": {"boxes": [], "score": None}}],
        ),
        (
            (torch.tensor([[0.5], [1.0]]), torch.tensor([1, 0])),
            [{"prediction_0": [0.5], "prediction_1": 1}, {"prediction_0": [1.0], "prediction_1": 0}],
        ),
        (SequenceClassifierOutput(logits=torch.eye(2)), [{"logits": [1.0, 0.0]}, {"logits": [0.0, 1.0]}]),
        ({"p": np.array([0.5]), "n": range(1), "t": (torch.tensor(3),)}, [{"p": 0.5, "n": 0, "t": 3}]),
    ],
)
def test_what_a_predict_step_usually_returns_is_rows(found: Any, want: list[dict[str, Any]]) -> None:
    assert rows(found) == want


def test_what_is_one_for_the_batch_stands_in_each_row() -> None:
    output = SequenceClassifierOutput(loss=torch.tensor(0.5), logits=torch.eye(2))
    assert rows(output) == [{"loss": 0.5, "logits": [1.0, 0.0]}, {"loss": 0.5, "logits": [0.0, 1.0]}]
    assert rows({"file": "ab", "label": [0, 1]}) == [{"file": "ab", "label": 0}, {"file": "ab", "label": 1}]
    assert rows({"loss": torch.tensor(0.5), "label": []}) == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (torch.tensor(1.0), r"with an entry for each row, or a mapping .*, got a tensor of shape \[\]"),
        ("ja", "got str"),
        (object(), "got object"),
        (
            SequenceClassifierOutput(loss=torch.tensor(1.0)),
            r"columns must be tensors or lists .*, got \{'loss': 'a tensor of shape \[\]'\}",
        ),
        ({"past": {"keys": torch.eye(2)}, "label": [0, 1]}, "got {'past': 'dict'}"),
        ({"past": object(), "label": [0, 1]}, "got {'past': 'object'}"),
        ((torch.eye(2), torch.ones(3)), "equally long, got {'prediction_0': 2, 'prediction_1': 3}"),
    ],
)
def test_what_has_no_rows_is_refused(found: Any, said: str) -> None:
    with pytest.raises(GPartError, match=said):
        rows(found)


def test_the_terminal_takes_what_a_predict_step_likes(capsys: pytest.CaptureFixture[str]) -> None:
    """It is printed where nobody asked for a file: plain Lightning would go on, too."""
    written(None, "ja", torch.tensor(0.5), [complex(1, 2)], {"a": [1]})
    said = capsys.readouterr().out.splitlines()
    assert said == ["ja", "tensor(0.5000)", '{"idx": 0, "prediction": "(1+2j)"}', '{"idx": 1, "a": 1}']


@pytest.mark.parametrize("extension", [".jsonl", ".csv", ".parquet"])
def test_an_error_before_the_first_row_leaves_no_file(extension: str, tmp_path: Path) -> None:
    with pytest.raises(GPartError, match="got object"):
        written(str(tmp_path / f"out{extension}"), object())
    assert not list(tmp_path.iterdir())


def test_an_error_later_leaves_the_rows_before_it_and_the_file_of_the_run_before(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    written(str(path), {"a": [1]})
    with pytest.raises(GPartError, match="got object"):
        written(str(path), {"a": [2]}, object())
    assert json.loads(path.read_text()) == {"idx": 0, "a": 1}
    part = tmp_path / "out.jsonl.part"
    assert json.loads(part.read_text()) == {"idx": 0, "a": 2}
    part.write_text("")  # another run's, which this one has not begun
    PredictionWriter(str(path)).on_exception(None, None, ValueError())  # type: ignore[arg-type]
    assert part.is_file()


def test_rows_that_say_their_place_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    written(str(path), {"idx": torch.tensor([7, 3]), "label": ["x", "y"]})
    assert [json.loads(line)["idx"] for line in path.read_text().splitlines()] == [7, 3]


def test_ranks_are_dealt_the_rows_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        world_size, global_rank = 2, 1

    writer = PredictionWriter(str(tmp_path / "out.jsonl"))
    writer.on_predict_start(Two(), None)  # type: ignore[arg-type]
    for at in range(2):
        writer.on_predict_batch_end(Two(), None, {"label": ["x", "y"]}, None, at)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.rank1.part"]
    writer.on_predict_end(Two(), None)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.rank1"]
    lines = (tmp_path / "out.jsonl.rank1").read_text().splitlines()
    assert [json.loads(line)["idx"] for line in lines] == [1, 3, 5, 7]


def test_another_extension_other_columns_and_mixed_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GPartError, match=r"end in .jsonl, .csv, .tsv, .parquet, got 'out.xlsx'"):
        PredictionWriter("out.xlsx")
    with pytest.raises(GPartError, match=r"the first batch has the columns \['idx', 'a'\], and another \['idx', 'b'\]"):
        written(str(tmp_path / "out.csv"), {"a": [1]}, {"b": [1]})
    with pytest.raises(GPartError, match=r"out.parquet: a column has values of several kinds"):
        written(str(tmp_path / "out.parquet"), {"a": [1]}, {"a": ["x"]})


def test_the_terminal_gets_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    written(None, {"a": [1, 2]})
    assert capsys.readouterr().out.splitlines()[-2:] == ['{"idx": 0, "a": 1}', '{"idx": 1, "a": 2}']
    assert issubclass(PredictionWriter, OfBoth)


def test_a_batch_says_its_rows_by_its_lists() -> None:
    """Those of people's own DataModules: lists of texts or numbers, under any name; tensors and others are the model's."""
    batch = {
        "input_ids": torch.ones(2, 3),
        "labels": ["a", "b"],
        "idx": torch.tensor([4, 5]),
        "text": ["u", "v"],
        "sku": [1, 2.5],
        "boxes": [[1], [2]],
    }
    assert row_columns(batch) == {"idx": [4, 5], "text": ["u", "v"], "sku": [1, 2.5]}
    rows = {"rows": [{"a": 1, "label": "x"}, {"label": "y"}]}
    assert beside(rows, {"label": ["p", "q"]}) == {"a": [1, None], "input_label": ["x", "y"], "label": ["p", "q"]}
