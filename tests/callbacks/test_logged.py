"""The settings stand among the logger's hyperparameters, beside the module's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData


class Strict(Logger):
    """Refuses a value that changes, as MLflow does."""

    name = version = "strict"

    def __init__(self) -> None:
        super().__init__()
        self.params: dict[str, Any] = {}

    def log_hyperparams(self, params: Any, *given: Any) -> None:
        from lightning.fabric.utilities.logger import _flatten_dict

        for key, value in _flatten_dict(dict(params)).items():
            assert self.params.setdefault(key, value) == value, key

    def log_metrics(self, *given: Any, **more: Any) -> None:
        pass


def test_in_a_file_beside_the_module_s(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path)
    lit_trainer(lit_gpart(seed=7), logger=logger).fit(lit_class(base=3), lit_loader())
    found = yaml.unsafe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
    assert (found["gpart/d"], found["gpart/seed"], found["gpart/target_modules"]) == (10, 7, ["0"])
    assert found["base"] == 3


def test_in_tensorboard_s_table(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    """Which shows the first that it was given."""
    logger = TensorBoardLogger(tmp_path)
    lit_trainer(lit_gpart(), logger=logger).fit(lit_class(base=3), lit_loader())
    events = EventAccumulator(logger.log_dir).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    shown = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (shown["gpart/d"].number_value, shown["base"].number_value) == (10, 3)


@pytest.mark.parametrize("name", ["gpart/d", "gpart"])
def test_the_user_s_own_name_wins(name: str, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    class Own(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({name: 3 if "/" in name else {"d": 3, "own": 1}})

    logger = Strict()
    lit_trainer(lit_gpart(), logger=logger).fit(Own(), lit_loader())
    assert (logger.params["gpart/d"], logger.params["gpart/seed"]) == (3, 0)


def test_a_data_module_s_and_a_named_adapter_s(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Data(LightningDataModule):
        def __init__(self, rows: int = 4) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            return lit_loader()

    logger = Strict()
    lit_trainer(lit_gpart(name="second"), logger=[logger]).fit(lit_class(), datamodule=Data())
    assert (logger.params["gpart/second/d"], logger.params["rows"], logger.params["width"]) == (10, 4, 16)


def test_a_module_that_logs_none_of_its_own(lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    class Silent(lit_class):
        def __init__(self, base: int = 0) -> None:
            super().__init__()
            self.save_hyperparameters(logger=False)

    logger = Strict()
    lit_trainer(lit_gpart(), logger=logger).fit(Silent(), lit_loader())
    assert {key.split("/")[0] for key in logger.params} == {"gpart"}
