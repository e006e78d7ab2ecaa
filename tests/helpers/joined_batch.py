"""What the scripts of several processes share: a module's steps, the rows of a joined batch dealt out, theta's bits.

Imported by the tests and, where torchrun starts a test file as a script, from beside it.
"""

from __future__ import annotations

import hashlib

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

BATCH, LENGTH = 8, 48


class Classifier(LightningModule):
    """The steps of fit, validate, test and predict; a subclass has ``forward``."""

    def loss(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]).float(), batch[1])

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("loss", self.loss(batch), sync_dist=True, batch_size=len(batch[0]))

    test_step = validation_step

    def predict_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self(batch[0])


def loader(ranks: int, rank: int) -> DataLoader:
    """A rank's part of the batches that one process would take whole."""
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(
        torch.randn(LENGTH, 8, generator=generator), torch.randint(0, 2, (LENGTH,), generator=generator)
    )
    return DataLoader(data, BATCH // ranks, sampler=DistributedSampler(data, ranks, rank, shuffle=False))


def bits(values: Tensor) -> str:
    """Tells whether two tensors have the same bits."""
    return hashlib.sha256(values.detach().numpy().tobytes()).hexdigest()[:16]
