"""What a project's own modules tell of themselves is in their adapter's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint

from gpart import GPartError, get_adapters
from gpart.callbacks import load_from_checkpoint
from gpart.serialization.about import About
from gpart.serialization.folder import read_folder
from gpart.serialization.sources import read_adapter


class Data(LightningDataModule):
    def __init__(self, loader: Any, max_length: int = 7) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="loader")
        self.loader = loader

    def train_dataloader(self) -> Any:
        return self.loader


@pytest.fixture
def telling(lit_class: Any) -> Any:
    class Telling(lit_class):
        told: Any = {"task": "two sorts", "labels": ["a", "b"], "base": None, "inputs": {"rate": 16_000}}  # noqa: RUF012

        def adapter_facts(self) -> Any:
            return self.told

    return Telling


def test_the_file_and_the_checkpoint_say_it(
    telling: Any, lit_loader: Any, lit_gpart: Any, lit_trainer: Any, tmp_path: Path
) -> None:
    keeper = ModelCheckpoint(tmp_path / "kept", filename="one")
    method = lit_gpart(save_folder=str(tmp_path / "adapter"))
    lit_trainer(method, keeper, enable_checkpointing=True).fit(telling(), datamodule=Data(lit_loader()))
    expected = About(
        model_class="Sequential", task="two sorts", labels=["a", "b"], inputs={"max_length": 7, "rate": 16_000}
    )
    assert read_adapter(tmp_path / "kept" / "one.ckpt")[0].about == expected
    about = read_folder(tmp_path / "adapter")[0].about
    assert about.score == {"step": 3}
    assert About(**{**about.to_dict(), "score": {}}) == expected
    loaded = load_from_checkpoint(telling, tmp_path / "kept" / "one.ckpt")
    assert get_adapters(loaded.net)["default"].about == expected
    again = lit_gpart(adapter=str(tmp_path / "adapter"), save_folder=str(tmp_path / "again"))
    lit_trainer(again, max_steps=1).fit(telling(), lit_loader())
    assert read_folder(tmp_path / "again")[0].about.score == {"step": 1}


def test_a_fact_that_is_none_is_refused(telling: Any, lit_loader: Any, lit_gpart: Any, lit_trainer: Any) -> None:
    telling.told = {"labels": torch.zeros(2)}
    with pytest.raises(GPartError, match=r"Telling.adapter_facts\(\): labels must be a list, got"):
        lit_trainer(lit_gpart()).fit(telling(), lit_loader())


def test_the_data_s_order_counts_where_labels_are_read(
    telling: Any, lit_loader: Any, lit_gpart: Any, lit_trainer: Any, lit_class: Any, tmp_path: Path
) -> None:
    lit_trainer(lit_gpart(save_folder=str(tmp_path / "adapter"))).fit(telling(), lit_loader())

    class Sorted(Data):
        test_dataloader = predict_dataloader = Data.train_dataloader

        def adapter_facts(self) -> Any:
            return {"labels": ["b", "a"]}

    def use(stage: str) -> None:
        trainer = lit_trainer(lit_gpart(adapter=str(tmp_path / "adapter")))
        getattr(trainer, stage)(lit_class(), datamodule=Sorted(lit_loader()))

    with pytest.raises(GPartError, match=r"has the classes \['a', 'b'\] in this order, and Sorted has \['b', 'a'\]"):
        use("test")
    use("predict")
