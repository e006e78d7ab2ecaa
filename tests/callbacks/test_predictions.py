"""PredictionWriter: each extension, the rows' places, their order, and what can't be written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from pyarrow import parquet
from torch.utils.data import DataLoader

from gpart.callbacks import PredictionWriter
from gpart.callbacks.packages import OfBoth
from gpart.errors import GPartError
from gpart.lightning_modules.common.row_columns import beside, row_columns


class Says(LightningModule):
    """Returns what the batch holds."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch


def written(path: str | None, *batches: dict[str, list[Any]]) -> None:
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
