"""The project's LightningModule. It knows no adapter."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from network import read_base
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor, list[str]]


class FaultClassifier(LightningModule):
    """Goes on from a trained network.

    Args:
        base: its weights.
        lr: the learning rate.
    """

    def __init__(self, base: str, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.network = read_base(base)

    def forward(self, recordings: Tensor) -> Tensor:
        """The logits."""
        return self.network(recordings)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The predictions, which callbacks see."""
        predicted = self(batch[0]).argmax(-1)
        self.log("test/accuracy", (predicted == batch[1]).float().mean(), batch_size=len(predicted))
        return predicted

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As for any training: of whatever there is to train."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
