"""Where predictions go: one JSON object a line, to a file or to the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from gpart.callbacks.packages import OfBoth
from gpart.errors import GPartError


class PredictionWriter(OfBoth, Callback):
    """Writes what ``predict_step`` returns, a mapping of equally long columns, as JSON lines.

    With several devices each rank writes a file of its own, ``<path>.rank<k>``.

    Args:
        path: the file; None prints the lines.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts with an empty file."""
        if self.path is not None:
            self._file(trainer).parent.mkdir(parents=True, exist_ok=True)
            self._file(trainer).write_text("")

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
            GPartError: if the prediction is no mapping of equally long columns.
        """
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(outputs))
        if self.path is None:
            print(lines, end="")
        else:
            with self._file(trainer).open("a") as file:
                file.write(lines)

    def _file(self, trainer: Trainer) -> Path:
        path = Path(self.path or "")
        return path if trainer.world_size == 1 else path.with_name(f"{path.name}.rank{trainer.global_rank}")


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
