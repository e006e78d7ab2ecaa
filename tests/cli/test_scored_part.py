"""What ``--test_best`` needs is asked for before training, of anybody's classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from gpart.cli.scored_part import ScoredPart
from gpart.errors import GPartError


class Training(LightningDataModule):
    """Has nothing to test on."""

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(RandomDataset(32, 4))

    def val_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(RandomDataset(32, 4))


class Scored(Training):
    """Has."""

    def test_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(RandomDataset(32, 4))


class Told(Scored):
    """Finds out in setup that it has not."""

    def check_test(self) -> None:
        raise GPartError("no rows called test")


class Untested(BoringModel):
    """Has no test_step of its own."""

    test_step = LightningModule.test_step
    test_dataloader = LightningModule.test_dataloader


def fit(tmp_path: Path, module: LightningModule, data: LightningDataModule | None) -> Trainer:
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_steps=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[ScoredPart()],
    )
    trainer.fit(module, datamodule=data)
    return trainer


@pytest.mark.parametrize("data", [None, Scored()])
def test_what_can_be_tested_trains(tmp_path: Path, data: LightningDataModule | None) -> None:
    assert fit(tmp_path, BoringModel(), data).global_step == 1


@pytest.mark.parametrize(
    ("module", "data", "said"),
    [
        (Untested(), Scored(), "needs a test_step, and Untested has none"),
        (Untested(), None, "needs a test_step, and Untested has none"),
        (BoringModel(), Told(), "no rows called test"),
    ],
)
def test_what_cannot_is_told_before_the_first_step(
    tmp_path: Path, module: LightningModule, data: LightningDataModule | None, said: str
) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(GPartError, match=said):
        fit(tmp_path, module, data)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_data_module_may_leave_the_test_part_to_the_lightning_module(tmp_path: Path) -> None:
    assert fit(tmp_path, BoringModel(), Training()).global_step == 1


def test_neither_has_a_test_dataloader(tmp_path: Path) -> None:
    class Half(BoringModel):
        test_dataloader = LightningModule.test_dataloader

    with pytest.raises(GPartError, match="needs a test_dataloader, and Training has none"):
        fit(tmp_path, Half(), Training())
