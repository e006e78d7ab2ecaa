"""What is trained, kept from the start of training on and at regular steps: for what is measured along a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gpart.callbacks.packages import OfBoth
from gpart.errors import GPartError

FOLDER = "snapshots"


class SnapshotWriter(OfBoth, Callback):
    """Writes a checkpoint before the first step, after every n-th and after the last, and removes none.

    Lightning's ModelCheckpoint writes none before the first step, and what a method draws for its start (LoRA's A) is in
    no later one. Under a method's callback a file holds what is trained and no frozen weight.

    Args:
        every_n_steps: optimizer steps between two files.
        path: their folder; default ``snapshots`` below the trainer's ``default_root_dir``.

    Raises:
        GPartError: if ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int = 50, path: str | None = None) -> None:
        if every_n_steps < 1:
            raise GPartError(f"every_n_steps must be 1 or more, got {every_n_steps}")
        self.every_n_steps, self.path = every_n_steps, path
        self._last = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The start; also of a run that goes on."""
        self._write(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every n-th step, once where batches are accumulated."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._last:
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last step."""
        if trainer.global_step != self._last:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        self._last = trainer.global_step
        folder = Path(trainer.default_root_dir) / FOLDER if self.path is None else Path(self.path)
        trainer.save_checkpoint(folder / f"step={self._last:06d}.ckpt", weights_only=True)
