"""A forecasting model: what its data set has learned (encoders, normalisers, classes) is among the hyperparameters."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from project_checks import Project, both_packages, check_line, check_load, check_merged, check_resume, drawn, loader
from torch import Tensor, nn

SERIES = drawn(16, 8, 3)
KINDS = torch.arange(16) % 3


class Encoder:
    """Fitted on the data, as sklearn's are."""

    def __init__(self, classes: list[str]) -> None:
        self.classes = {name: at for at, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.classes)


class Normaliser(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", values.mean((0, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean


def project(package: str) -> Project:
    pl = importlib.import_module(package)

    class Forecaster(pl.LightningModule):
        def __init__(self, encoders: dict[str, Encoder], normaliser: nn.Module, loss: type, hidden: int = 8) -> None:
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(1)
            self.normaliser = normaliser
            self.embeddings = nn.ModuleDict(
                {name: nn.Embedding(len(encoder), hidden) for name, encoder in encoders.items()}
            )
            self.encoder, self.decoder = nn.Linear(3, hidden), nn.Linear(hidden, hidden)
            self.output = nn.Linear(hidden, 1)
            self.measure = loss()

        def forward(self, x: Tensor, kind: Tensor) -> Tensor:
            inside = sum(embedding(kind) for embedding in self.embeddings.values())
            hidden = torch.tanh(self.encoder(self.normaliser(x)).mean(1) + inside)
            return self.output(torch.tanh(self.decoder(hidden))).squeeze(-1)

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = self.measure(self(batch[0][:, :-1], batch[1]), batch[0][:, -1, 0])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.02)

    return Project(
        package,
        lambda: Forecaster({"kind": Encoder(["a", "b", "c"])}, Normaliser(SERIES), nn.SmoothL1Loss),
        lambda: loader(SERIES, KINDS),
        {"d": 7, "target_modules": ["encoder", "decoder", "embeddings.kind"], "modules_to_save": ["output"]},
        lambda module: module(SERIES, KINDS),
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
def test_its_own_load(package: str, tmp_path: Path) -> None:
    check_load(project(package), tmp_path)
    check_merged(project(package), tmp_path)
