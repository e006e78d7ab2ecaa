"""A GAN: two networks, two optimizers, stepped by hand, with noise drawn in the step."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from project_checks import (
    Project,
    both_packages,
    check_line,
    check_load,
    check_merged,
    check_resume,
    drawn,
    loader,
    run,
    same,
)
from torch import Tensor, nn

REAL, NOISE = drawn(16, 3), drawn(4, 5, seed=1)


def project(package: str) -> Project:
    pl = importlib.import_module(package)

    class Gan(pl.LightningModule):
        def __init__(self, lr: float = 0.02) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.automatic_optimization = False
            torch.manual_seed(1)
            self.generator = nn.Sequential(nn.Linear(5, 10), nn.LeakyReLU(0.2), nn.Linear(10, 3))
            self.discriminator = nn.Sequential(nn.Linear(3, 10), nn.LeakyReLU(0.2), nn.Linear(10, 1))

        def forward(self, noise: Tensor) -> Tensor:
            return self.generator(noise)

        def judged(self, pictures: Tensor, real: bool) -> Tensor:
            scores = self.discriminator(pictures)
            return nn.functional.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(real)))

        def training_step(self, batch: Any, index: int) -> None:
            of_generator, of_discriminator = self.optimizers()
            noise = torch.randn(len(batch[0]), 5)

            self.toggle_optimizer(of_generator)
            fooled = self.judged(self(noise), real=True)
            of_generator.zero_grad()
            self.manual_backward(fooled)
            of_generator.step()
            self.untoggle_optimizer(of_generator)

            self.toggle_optimizer(of_discriminator)
            found = (self.judged(batch[0], real=True) + self.judged(self(noise).detach(), real=False)) / 2
            of_discriminator.zero_grad()
            self.manual_backward(found)
            of_discriminator.step()
            self.untoggle_optimizer(of_discriminator)
            self.log_dict({"loss": fooled, "d_loss": found})

        def configure_optimizers(self) -> Any:
            rate, betas = self.hparams.lr, (0.5, 0.999)
            return [
                torch.optim.Adam(network.parameters(), lr=rate, betas=betas)
                for network in (self.generator, self.discriminator)
            ], []

    line = {"d": 7, "target_modules": ["0"], "modules_to_save": ["2"], "module": "generator"}
    return Project(package, Gan, lambda: loader(REAL), line, lambda module: module(NOISE))


@both_packages
def test_with_the_line(package: str, tmp_path: Path) -> None:
    done = check_line(project(package), tmp_path)
    start = project(package).build().discriminator.state_dict()  # outside the adapted network: trained as ever
    now = done.module.discriminator.state_dict()
    assert now.keys() == start.keys()
    assert not any(same(now[name], value) for name, value in start.items())


@both_packages
def test_resume(package: str, tmp_path: Path) -> None:
    check_resume(project(package), tmp_path)


@both_packages
def test_its_own_save_and_load(package: str, tmp_path: Path) -> None:
    check_load(project(package), tmp_path)
    check_merged(project(package), tmp_path)
    done = run(project(package).with_line(merge_at_end=True), tmp_path / "end")
    torch.save(done.module.generator.state_dict(), tmp_path / "generator.pt")
    fresh = project(package).build()
    fresh.generator.load_state_dict(torch.load(tmp_path / "generator.pt", weights_only=True), strict=True)
    assert same(fresh(NOISE), done.module(NOISE))
