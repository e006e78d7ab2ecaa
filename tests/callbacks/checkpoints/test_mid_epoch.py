"""Checkpoints in the middle of an epoch, which only some loaders can go on from, are warned of when they are written."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

SAID = r"middle of an epoch \(after (\d) batches\), and the training loader \((\w+)\) cannot be resumed there"


def said(run: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(one.message) for one in caught if "middle of an epoch" in str(one.message)]


def every(steps: int, folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, every_n_train_steps=steps, save_top_k=-1)


class Rows(IterableDataset):
    """Has no length."""

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        for label in (0, 1) * 8:
            yield torch.randn(8, generator=generator), label


def test_a_plain_loader_is_named_once(
    lit_any: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    trainer = lit_trainer(lit_gpart(), every(3, tmp_path), max_epochs=3, enable_checkpointing=True)
    messages = said(lambda: trainer.fit(lit_any(), lit_loader()))
    assert len(messages) == 1
    assert "after 3 batches" in messages[0]
    assert "(DataLoader)" in messages[0]


def test_a_validation_within_the_epoch(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    keeper = ModelCheckpoint(tmp_path, monitor="val/loss")
    trainer = lit_trainer(lit_gpart(), keeper, max_epochs=1, enable_checkpointing=True, val_check_interval=2)
    assert len(said(lambda: trainer.fit(lit_class(), lit_loader(), lit_loader()))) == 1


@pytest.mark.parametrize("more", [{"max_epochs": 2}, {"max_steps": 6}, {"max_epochs": 2, "limit_train_batches": 2}])
def test_nothing_is_said_at_an_epoch_s_or_the_run_s_end(
    more: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    trainer = lit_trainer(lit_gpart(), ModelCheckpoint(tmp_path), enable_checkpointing=True, **more)

    def run() -> None:
        module = lit_class()
        trainer.fit(module, lit_loader(), lit_loader())
        trainer.save_checkpoint(tmp_path / "after.ckpt")
        trainer.validate(module, lit_loader(), verbose=False)
        trainer.save_checkpoint(tmp_path / "later.ckpt")

    assert said(run) == []


def test_a_loader_that_resumes_is_fine(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    trainer = lit_trainer(lit_gpart(), every(3, tmp_path), max_epochs=2, enable_checkpointing=True)
    loader = StatefulDataLoader(lit_loader().dataset, batch_size=4)
    assert said(lambda: trainer.fit(lit_class(), loader)) == []


@pytest.mark.parametrize("steps", [2, 4])
def test_data_without_a_length(steps: int, lit_class: Any, lit_gpart: Any, lit_trainer: Any, tmp_path: Path) -> None:
    """Whose last batch is known to be the last when it is fetched."""
    trainer = lit_trainer(lit_gpart(), every(steps, tmp_path), max_epochs=1, enable_checkpointing=True)
    loader = torch.utils.data.DataLoader(Rows(), batch_size=4)
    assert len(said(lambda: trainer.fit(lit_class(), loader))) == (steps == 2)


def test_a_checkpoint_by_hand(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    class ByHand(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            trainer.save_checkpoint(tmp_path / f"{index}.ckpt", weights_only=bool(index))

    trainer = lit_trainer(lit_gpart(), ByHand(), max_epochs=1)
    loaders = {"a": lit_loader(), "b": StatefulDataLoader(lit_loader().dataset, batch_size=4)}

    class Two(lit_class):
        def training_step(self, batch: Any, index: int) -> Any:
            return self.loss(batch["a"]) + self.loss(batch["b"])

    assert ["(DataLoader)" in message for message in said(lambda: trainer.fit(Two(), loaders))] == [True]
