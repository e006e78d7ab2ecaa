"""A project run by LightningCLI, with ``--optimizer`` and ``--lr_scheduler`` on the command line."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from project_checks import assert_same_states, both_packages, drawn, loader, same
from torch import Tensor, nn

from gpart.callbacks import GPartCallback, load_from_checkpoint

INPUTS = drawn(16, 6)
LABELS = (INPUTS[:, 0] > 0).long()
WORDS = [
    *("--optimizer", "AdamW", "--optimizer.lr", "0.05", "--optimizer.weight_decay", "0.1"),
    *("--lr_scheduler", "ExponentialLR", "--lr_scheduler.gamma", "0.5"),
]


def modules(package: str) -> type:
    pl = importlib.import_module(package)

    class Classifier(pl.LightningModule):
        def __init__(self, width: int = 10) -> None:
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 2))
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def train_dataloader(self) -> Any:
            return loader(INPUTS, LABELS)

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.seen.append(loss.detach())
            return loss

    return Classifier


@pytest.fixture(autouse=True)
def no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])  # else LightningCLI warns of pytest's


def main(package: str, cls: type, folder: Path, line: bool, *words: str, epochs: int = 1, **more: Any) -> Any:
    """The user's script; the line is one callback in the trainer's defaults."""
    pl, cli = importlib.import_module(package), importlib.import_module(f"{package}.cli")
    callbacks = [pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)]
    if line:
        callbacks.append(GPartCallback(d=7, target_modules=["0"], modules_to_save=["2"], **more))
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {**quiet, "max_epochs": epochs, "callbacks": callbacks}
    return cli.LightningCLI(cls, args=["fit", *WORDS, *words], trainer_defaults=defaults, save_config_callback=None)


@both_packages
def test_with_the_line(package: str, tmp_path: Path) -> None:
    cls = modules(package)
    plain = main(package, cls, tmp_path / "plain", line=False)
    done = main(package, cls, tmp_path / "line", line=True)
    assert len(done.model.seen) == len(plain.model.seen)
    assert same(done.model.seen[0], plain.model.seen[0])
    base, state = cls().state_dict(), done.model.state_dict()
    (theta,) = state.keys() - base.keys()
    assert state[theta].count_nonzero() > 0
    assert {name for name, value in base.items() if not same(state[name], value)} == {"net.2.weight", "net.2.bias"}
    (optimizer,) = done.trainer.optimizers
    assert {name: optimizer.param_groups[0][name] for name in ("initial_lr", "weight_decay")} == {
        "initial_lr": 0.05,
        "weight_decay": 0.1,
    }
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    assert held == {id(value) for value in done.model.parameters() if value.requires_grad}


@both_packages
def test_resume(package: str, tmp_path: Path) -> None:
    cls = modules(package)
    whole = main(package, cls, tmp_path / "whole", line=True, epochs=2)
    main(package, cls, tmp_path / "half", line=True)
    (file,) = (tmp_path / "half").glob("*.ckpt")
    rest = main(package, cls, tmp_path / "rest", True, f"--ckpt_path={file}", epochs=2)
    assert len(rest.model.seen) == 4
    assert all(map(same, rest.model.seen, whole.model.seen[4:]))
    assert_same_states(rest.model.state_dict(), whole.model.state_dict())


@both_packages
def test_its_own_save_and_load(package: str, tmp_path: Path) -> None:
    cls = modules(package)
    done = main(package, cls, tmp_path / "line", line=True)
    (file,) = (tmp_path / "line").glob("*.ckpt")
    assert same(load_from_checkpoint(cls, file)(INPUTS), done.model(INPUTS))
    done = main(package, cls, tmp_path / "merged", line=True, checkpoints="merged")
    (file,) = (tmp_path / "merged").glob("*.ckpt")
    assert same(cls.load_from_checkpoint(file)(INPUTS), done.model(INPUTS))
