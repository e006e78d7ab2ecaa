"""Where predictions go: a file by its extension, or the terminal.

Invariant: the file holds all rows. Until the last one is there they stand beside it in ``<path>.part``, which an error
before the first row leaves none of.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from pyarrow import parquet
from torch import Tensor

from gpart.callbacks.packages import OfBoth
from gpart.errors import GPartError
from gpart.serialization.json_numbers import finite

EXTENSIONS = (".jsonl", ".csv", ".tsv", ".parquet")
"""What files of predictions end in."""


class PredictionWriter(OfBoth, Callback):
    """Writes what ``predict_step`` returns, a row for each entry: of a tensor or a list, or of a mapping of such columns.

    A tensor or a list is the column ``prediction``, a tuple the columns ``prediction_0``, ``prediction_1`` and so on; where
    an entry has several numbers, the row has a list of them. A number that is one for the batch, as the loss in Transformers'
    outputs, stands in each row. None has no rows. Rows are in the order of the data. Those without an ``idx`` get the place
    of their row in the data, from 0. In CSV and TSV, lists and mappings are written as JSON. In JSON a
    number that is not finite is null. With several devices each rank writes a file of its own, ``<path>.rank<k>``. They are written to ``<path>.part``, which becomes the file when all are there.

    Args:
        path: the file: JSON lines, CSV, TSV or Parquet, by its extension; None prints JSON lines.

    Raises:
        GPartError: if the file has another extension.
    """

    def __init__(self, path: str | None = None) -> None:
        if path is not None and Path(path).suffix.lower() not in EXTENSIONS:
            raise GPartError(f"predictions are written to files that end in {', '.join(EXTENSIONS)}, got {str(path)!r}")
        self.path = path
        self._count, self._begun = 0, False
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
        self._begun = True

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes one batch; in the terminal, what has no rows is printed as it is.

        Raises:
            GPartError: if there is a file, and the prediction has no rows or its columns are not equally long, see
                :func:`rows`, or they are not the first batch's.
        """
        if batch_idx == 0:
            self._count = 0  # of another loader
        try:
            found = rows(outputs)
        except GPartError:
            if self.path is not None:
                raise
            print(outputs)  # a predict_step may return what it likes
            return
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
        self._begun = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the rows that were written, and no empty file."""
        if self._begun and (part := self._part(trainer)).is_file() and not part.stat().st_size:
            part.unlink()
        self._begun = False

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


def rows(found: Any) -> list[dict[str, Any]]:
    """What ``predict_step`` has returned as a list of rows. What is one for the batch, as a loss, stands in each row.

    Raises:
        GPartError: if it is nothing with rows, or columns are not equally long.

    Example:
        >>> rows({"text": ["a", "b"], "label": [0, 1]})
        [{'text': 'a', 'label': 0}, {'text': 'b', 'label': 1}]
        >>> import torch
        >>> rows(torch.tensor([[0.5, 0.25], [1.0, 0.0]]))
        [{'prediction': [0.5, 0.25]}, {'prediction': [1.0, 0.0]}]
        >>> rows({"loss": torch.tensor(0.5), "label": [0, 1]})
        [{'loss': 0.5, 'label': 0}, {'loss': 0.5, 'label': 1}]
    """
    if found is None:
        return []
    if isinstance(found, tuple):  # several outputs of one batch
        found = {f"prediction_{at}": value for at, value in enumerate(found)}
    columns = _plain(found)
    if isinstance(columns, list):
        columns = {"prediction": columns}
    if not isinstance(columns, dict):
        raise GPartError(
            "a prediction must be a tensor or a list with an entry for each row, or a mapping of such columns, got"
            f" {_kind(found)}"
        )
    lengths = {name: len(value) for name, value in columns.items() if isinstance(value, list)}
    single = {name: one for name, one in columns.items() if lengths and isinstance(one, (int, float, str, type(None)))}
    if others := {name: _kind(found[name]) for name in columns if name not in lengths and name not in single}:
        raise GPartError(f"a prediction's columns must be tensors or lists with an entry for each row, got {others}")
    if len(set(lengths.values())) > 1:
        raise GPartError(f"a prediction's columns must be equally long, got {lengths}")
    columns |= {name: [value] * max(lengths.values()) for name, value in single.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists or numbers, also those inside lists and mappings, such as Transformers' outputs."""
    if isinstance(value, (Tensor, np.ndarray, np.number, np.bool_)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(one) for one in value]
    return value


def _kind(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _lines(found: list[dict[str, Any]]) -> str:
    return "".join(f"{_json(row)}\n" for row in found)


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, (list, dict)) else value


def _json(value: Any) -> str:
    # What JSON does not know, such as a date of a DataFrame, is written as its text.
    return json.dumps(finite(value), ensure_ascii=False, default=str, allow_nan=False)
