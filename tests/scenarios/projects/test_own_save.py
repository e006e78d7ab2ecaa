"""A model class that hides Lightning: it trains, saves a folder of its own, and loads that."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from project_checks import Project, both_packages, check_line, check_merged, check_resume, drawn, loader, run, same
from torch import Tensor, nn

COUNTS = drawn(16, 6).abs()


def project(package: str, sizes: dict[str, int] | None = None) -> Project:
    pl = importlib.import_module(package)

    class Vae(nn.Module):
        def __init__(self, genes: int = 6, hidden: int = 10, latent: int = 3) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.encoder, self.norm = nn.Linear(genes, hidden), nn.BatchNorm1d(hidden)
            self.mean, self.spread, self.decoder = (
                nn.Linear(hidden, latent),
                nn.Linear(hidden, latent),
                nn.Linear(latent, genes),
            )

        def latent(self, x: Tensor) -> Tensor:
            return self.mean(torch.relu(self.norm(self.encoder(x))))

        def loss(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.norm(self.encoder(x)))
            mean, spread = self.mean(hidden), self.spread(hidden)
            sample = mean + torch.randn_like(mean) * (0.5 * spread).exp()
            return nn.functional.mse_loss(self.decoder(sample), x) + (mean.square() + spread.exp() - spread).mean()

    class Plan(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.module = Vae(**(sizes or {}))

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = self.module.loss(batch[0])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            wanted = [value for value in self.module.parameters() if value.requires_grad]
            return torch.optim.Adam(wanted, lr=0.02)

    line = {"d": 7, "target_modules": ["encoder", "mean"], "modules_to_save": ["decoder", "spread", "norm"]}
    return Project(package, Plan, lambda: loader(COUNTS), line, lambda module: module.module.eval().latent(COUNTS))


def save(module: Any, folder: Path, sizes: dict[str, int]) -> None:
    folder.mkdir()
    torch.save(module.module.state_dict(), folder / "model.pt")
    (folder / "sizes.json").write_text(json.dumps(sizes))


def load(package: str, folder: Path) -> Any:
    made = project(package, json.loads((folder / "sizes.json").read_text())).build()
    made.module.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return made


@both_packages
def test_with_the_line(package: str, tmp_path: Path) -> None:
    check_line(project(package), tmp_path)


@both_packages
def test_resume(package: str, tmp_path: Path) -> None:
    check_resume(project(package), tmp_path)
    check_merged(project(package), tmp_path / "merged")


@both_packages
def test_its_own_save_and_load(package: str, tmp_path: Path) -> None:
    sizes = {"genes": 6, "hidden": 8, "latent": 2}
    asked = project(package, sizes).with_line(merge_at_end=True)
    first = run(asked, tmp_path / "first")
    save(first.module, tmp_path / "own", sizes)
    loaded = load(package, tmp_path / "own")
    assert same(asked.answer(loaded), asked.answer(first.module))

    # It is a base like any other, for a second line and a second folder.
    second = run(asked, tmp_path / "second", module=loaded.train())
    save(second.module, tmp_path / "again", sizes)
    again = load(package, tmp_path / "again")
    assert same(asked.answer(again), asked.answer(second.module))
    assert not same(asked.answer(again), asked.answer(first.module))
