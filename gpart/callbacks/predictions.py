"""Where predictions go: a file by its extension, or the terminal."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from pyarrow import parquet
from torch import Tensor

from gpart.callbacks.packages import OfBoth
from gpart.errors import GPartError

EXTENSIONS = (".jsonl", ".csv", ".tsv", ".parquet")
"""What files of predictions end in."""


class PredictionWriter(OfBoth, Callback):
    """Writes what ``predict_step`` returns, a mapping of equally long columns, a row for each of its places.

    Rows are in the order of the data. Those without an ``idx`` get the place of their row in the data, from 0. In CSV and
    TSV, lists and mappings are written as JSON. With several devices each rank writes a file of its own,
    ``<path>.rank<k>``. They are written to ``<path>.part``, which becomes the file when all are there.

    Args:
        path: the file: JSON lines, CSV, TSV or Parquet, by its extension; None prints JSON lines.

    Raises:
        GPartError: if the file has another extension.
    """

    def __init__(self, path: str | None = None) -> None:
        if path is not None and Path(path).suffix.lower() not in EXTENSIONS:
            raise GPartError(f"predictions are written to files that end in {', '.join(EXTENSIONS)}, got {str(path)!r}")
        self.path = path
        self._count = 0
        self._columns: list[str] = []
        self._kept: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts with an empty file.

        Raises:
            GPartError: if it is the file that the rows come from.
        """
        self._columns, self._kept = [], []
        if self.path is None:
            return
        source = getattr(getattr(trainer, "datamodule", None), "hparams", {}).get("path")
        if isinstance(source, str) and Path(source).expanduser().resolve() == self._file(trainer).resolve():
            raise GPartError(f"the predictions would take the place of the rows, {source}: name another file")
        self._file(trainer).parent.mkdir(parents=True, exist_ok=True)
        self._part(trainer).write_text("")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes one batch.

        Raises:
            GPartError: if the prediction is no mapping of equally long columns, or its columns are not the first batch's.
        """
        if batch_idx == 0:
            self._count = 0  # of another loader
        found = rows(outputs)
        if found and "idx" not in found[0]:
            # Lightning's sampler deals the rows out to the ranks, one by one.
            step, first = trainer.world_size, trainer.global_rank + self._count * trainer.world_size
            found = [{"idx": first + step * at, **row} for at, row in enumerate(found)]
        self._count += len(found)
        if self.path is None:
            print(_lines(found), end="")
        else:
            self._write(found, self._part(trainer), Path(self.path).suffix.lower())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what can only be written whole, and gives the file its name."""
        if self._kept:
            try:
                parquet.write_table(pa.Table.from_pylist(self._kept), self._part(trainer))
            except pa.ArrowException as error:
                raise GPartError(
                    f"{self.path}: a column has values of several kinds, which Parquet does not take: {error}; .jsonl does"
                ) from error
            self._kept = []
        if self.path is not None:
            self._part(trainer).replace(self._file(trainer))

    def _write(self, found: list[dict[str, Any]], file: Path, extension: str) -> None:
        if extension == ".parquet":  # a column's type is known when all its values are
            self._kept += found
        elif extension == ".jsonl":
            with file.open("a", encoding="utf-8") as lines:
                lines.write(_lines(found))
        elif found:
            with file.open("a", encoding="utf-8", newline="") as lines:
                if not self._columns:
                    self._columns = list(found[0])
                    csv.writer(lines, delimiter=_DELIMITERS[extension]).writerow(self._columns)
                if list(found[0]) != self._columns:
                    raise GPartError(
                        f"{self.path}: the first batch has the columns {self._columns}, and another {list(found[0])}"
                    )
                writer = csv.writer(lines, delimiter=_DELIMITERS[extension])
                writer.writerows([_cell(value) for value in row.values()] for row in found)

    def _file(self, trainer: Trainer) -> Path:
        path = Path(self.path or "")
        return path if trainer.world_size == 1 else path.with_name(f"{path.name}.rank{trainer.global_rank}")

    def _part(self, trainer: Trainer) -> Path:
        file = self._file(trainer)
        return file.with_name(f"{file.name}.part")


_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def rows(columns: Any) -> list[dict[str, Any]]:
    """A mapping of columns as a list of rows.

    Example:
        >>> rows({"text": ["a", "b"], "label": [0, 1]})
        [{'text': 'a', 'label': 0}, {'text': 'b', 'label': 1}]
    """
    if not isinstance(columns, Mapping):
        raise GPartError(f"a prediction must be a mapping of columns, got {type(columns).__name__}")
    plain: dict[str, Sequence[Any]] = {
        name: value.tolist() if isinstance(value, Tensor) else value for name, value in columns.items()
    }
    lengths = {name: len(value) for name, value in plain.items()}
    if len(set(lengths.values())) > 1:
        raise GPartError(f"a prediction's columns must be equally long, got {lengths}")
    return [dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True)]


def _lines(found: list[dict[str, Any]]) -> str:
    # What JSON does not know, such as a date of a DataFrame, is written as its text.
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in found)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else value
