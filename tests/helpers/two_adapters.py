"""A project whose network takes two adapters, the callbacks that train them together, and a fit that keeps every epoch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gpart.callbacks import GPartCallback


class Project(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.ModuleDict({"one": nn.Linear(6, 8), "two": nn.Linear(8, 8), "head": nn.Linear(8, 2)})

    def forward(self, x: Tensor) -> Tensor:
        return self.net["head"](torch.relu(self.net["two"](torch.relu(self.net["one"](x)))))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([value for value in self.parameters() if value.requires_grad], lr=0.05)


def callbacks(**more: Any) -> list[GPartCallback]:
    return [
        GPartCallback(d=9, target_modules=["one"], modules_to_save=["head"], name="first", **more),
        GPartCallback(d=7, target_modules=["one", "two"], seed=5, name="second", **more),
    ]


def fit(
    module: LightningModule, data: TensorDataset, used: list[Any], folder: Path, epochs: int = 2, **more: Any
) -> Trainer:
    """Fits without a word, but for the one that a theta may be in the wrong optimizer, which is an error."""
    checkpoint = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", every_n_epochs=1)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[*used, checkpoint],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "the weights that are frozen now stood in")
        trainer.fit(module, DataLoader(data, batch_size=4), **more)
    return trainer
