"""An MLP in a ModuleList that is iterated, counted and indexed from its end."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from project_checks import (
    Project,
    both_packages,
    check_files,
    check_line,
    check_resume,
    drawn,
    loader,
)
from torch import Tensor, nn

INPUTS = drawn(16, 6)
TARGETS = INPUTS.sum(1, keepdim=True)


def project(package: str, alone: bool) -> Project:
    pl = importlib.import_module(package)

    class Mlp(pl.LightningModule):
        def __init__(self, sizes: tuple[int, ...] = (6, 10, 10, 1)) -> None:
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(1)
            layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
            self.layers = nn.ModuleList(layers if alone else layers[:-1])
            if not alone:
                self.last = layers[-1]

        def forward(self, x: Tensor) -> Tensor:
            for at, layer in enumerate(self.layers):
                x = layer(x)
                if not alone or at < len(self.layers) - 1:
                    x = torch.relu(x)
            assert self.layers[-1].weight.shape[1] == 10
            return x if alone else self.last(x)

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = nn.functional.mse_loss(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.layers.parameters() if alone else self.parameters(), lr=0.02)

    line = {"d": 7, "target_modules": ["0", "1"], "modules_to_save": ["2" if alone else "last"]}
    if not alone:
        line["target_modules"] = ["layers.0", "layers.1"]
    return Project(package, Mlp, lambda: loader(INPUTS, TARGETS), line, lambda module: module(INPUTS))


@both_packages
@pytest.mark.parametrize("alone", [True, False])
def test_with_the_line(package: str, alone: bool, tmp_path: Path) -> None:
    check_line(project(package, alone), tmp_path)


@both_packages
@pytest.mark.parametrize("alone", [True, False])
def test_resume(package: str, alone: bool, tmp_path: Path) -> None:
    check_resume(project(package, alone), tmp_path)


@both_packages
@pytest.mark.parametrize("alone", [True, False])
def test_its_own_save_and_load(package: str, alone: bool, tmp_path: Path) -> None:
    check_files(project(package, alone), tmp_path)
