"""N-BEATS: stacks of blocks in lists of lists; each subtracts its backcast from what the next one sees."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

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

PAST, FUTURE = drawn(16, 8), drawn(16, 2, seed=1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU())
        self.theta = nn.Linear(10, 10, bias=False)  # what the paper calls it

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.theta(self.layers(x)).split([8, 2], dim=-1)


def project(package: str) -> Project:
    pl = importlib.import_module(package)

    class Beats(pl.LightningModule):
        def __init__(self, stacks: int = 2, blocks: int = 2) -> None:
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(1)
            self.stacks = nn.ModuleList([nn.ModuleList([Block() for _ in range(blocks)]) for _ in range(stacks)])

        def forward(self, x: Tensor) -> Tensor:
            forecasts = []
            for stack in self.stacks:
                for block in stack:
                    backcast, forecast = block(x)
                    x = x - backcast
                    forecasts.append(forecast)
            return torch.stack(forecasts).sum(0)

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = nn.functional.l1_loss(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    line = {"d": 9, "target_modules": r".*layers\.(0|2)", "modules_to_save": ["1.1.theta"]}
    return Project(package, Beats, lambda: loader(PAST, FUTURE), line, lambda module: module(PAST))


@both_packages
def test_with_the_line(package: str, tmp_path: Path) -> None:
    check_line(project(package), tmp_path)


@both_packages
def test_resume(package: str, tmp_path: Path) -> None:
    check_resume(project(package), tmp_path)


@both_packages
def test_its_own_save_and_load(package: str, tmp_path: Path) -> None:
    check_files(project(package), tmp_path)
