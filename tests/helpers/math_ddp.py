"""Trains, tests and predicts in as many processes as torchrun started; writes what each rank saw: FOLDER DATA NAME.

With a checkpoint as the fourth word it goes on from there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from gpart.datamodules import MathDataModule

torch.set_num_threads(1)


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
        self.seen["train"].append([ids[: sum(mask)] for ids, mask in rows])
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: dict[str, Any], index: int, dataloader_idx: int = 0) -> None:
        if dataloader_idx:
            self.seen["val"].append(list(zip(batch["idx"], batch["repeated"], strict=True)))

    def test_step(self, batch: dict[str, Any], index: int, dataloader_idx: int = 0) -> None:
        rows = zip(batch["benchmark"], batch["idx"], batch["repeated"], strict=True)
        self.seen["test"].append(list(rows))

    def predict_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        rows = zip(batch["benchmark"], batch["idx"], batch["repeated"], strict=True)
        self.seen["predict"].append(list(rows))
        return torch.zeros(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def main(folder: str, data: str, name: str, checkpoint: str | None = None) -> None:
    module, alone = Recorder(), name == "one"
    keeper = ModelCheckpoint(Path(folder) / name, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        max_epochs=2, callbacks=[keeper], accelerator="cpu", devices=1 if alone else 2,
        strategy="auto" if alone else "ddp", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    place = Path(data)
    own = MathDataModule(
        str(place / "model"), str(place / "train"), gsm8k=str(place / "gsm8k"), math=str(place / "math"), held_out=0.1,
        batch_size=4 if alone else 2, eval_batch_size=2, val_questions=5,
    )  # fmt: skip
    trainer.fit(module, datamodule=own, ckpt_path=checkpoint)
    trainer.test(module, datamodule=own, verbose=False)
    trainer.predict(module, datamodule=own)
    (Path(folder) / f"{name}-{trainer.global_rank}.json").write_text(json.dumps(module.seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
