"""A project whose network takes two adapters, and the callbacks that train them together."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

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
