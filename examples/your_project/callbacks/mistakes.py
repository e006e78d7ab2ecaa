"""Which recordings were taken for what."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lit_module import Batch
from network import LABELS
from torch import Tensor


class MistakesWriter(Callback):
    """Writes the wrong predictions of a test into a CSV file.

    Args:
        file: is replaced at each test.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.rows: list[list[str]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the test before."""
        self.rows = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Tensor, batch: Batch, batch_idx: int
    ) -> None:
        """Collects."""
        for file, label, predicted in zip(batch[2], batch[1].tolist(), outputs.tolist(), strict=True):
            if label != predicted:
                self.rows.append([file, LABELS[label], LABELS[predicted]])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("w", newline="") as file:
            csv.writer(file).writerows([["file", "is", "taken for"], *self.rows])
