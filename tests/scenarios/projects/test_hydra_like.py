"""A template project: the network and partials of the optimizer and the scheduler come from outside, as hyperparameters."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from project_checks import Project, both_packages, check_line, check_load, check_merged, check_resume, drawn, loader
from torch import Tensor, nn

INPUTS = drawn(16, 6)
LABELS = (INPUTS[:, 0] > 0).long()


class Net(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def project(package: str) -> Project:
    pl = importlib.import_module(package)

    class Digits(pl.LightningModule):
        def __init__(self, net: nn.Module, optimizer: Any, scheduler: Any, criterion: nn.Module) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = net
            self.criterion = criterion

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = self.criterion(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = self.hparams.optimizer(params=self.trainer.model.parameters())
            scheduler = self.hparams.scheduler(optimizer=optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}

    def build() -> Any:
        return Digits(
            Net(),
            partial(torch.optim.Adam, lr=0.02),
            partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.1),
            nn.CrossEntropyLoss(),
        )

    return Project(
        package,
        build,
        lambda: loader(INPUTS, LABELS),
        {"d": 7, "target_modules": ["model.0"], "modules_to_save": ["model.3"], "module": "net"},
        lambda module: module.eval()(INPUTS),
        fit={"weights_only": False},
        read={"weights_only": False},
    )


@both_packages
def test_with_the_line(package: str, tmp_path: Path) -> None:
    check_line(project(package), tmp_path)


@both_packages
def test_resume(package: str, tmp_path: Path) -> None:
    check_resume(project(package), tmp_path)


@both_packages
def test_its_evaluation_script_makes_no_callback(package: str, tmp_path: Path) -> None:
    check_load(project(package), tmp_path)
    check_merged(project(package), tmp_path)
