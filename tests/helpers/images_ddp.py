"""Trains on pictures in as many processes as torchrun started, and writes what each rank saw: FOLDER DATA MODEL NAME.

With a checkpoint as the fifth word it goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from gpart.datamodules import ImageDataModule

torch.set_num_threads(1)


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[int, int, str]] = []

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        prints = [hashlib.sha256(one.numpy().tobytes()).hexdigest()[:16] for one in batch["pixel_values"]]
        epochs = [self.current_epoch] * len(prints)
        self.seen += zip(epochs, batch["idx"], prints, strict=True)
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def main(folder: str, data: str, model: str, name: str, checkpoint: str | None = None) -> None:
    module = Recorder()
    keeper = ModelCheckpoint(Path(folder) / name, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        max_epochs=2, callbacks=[keeper], accelerator="cpu", devices=1 if name == "one" else 2,
        strategy="auto" if name == "one" else "ddp", logger=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=ImageDataModule("imagefolder", model, path=data, batch_size=4), ckpt_path=checkpoint)
    (Path(folder) / f"{name}-{trainer.global_rank}.json").write_text(json.dumps(module.seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
