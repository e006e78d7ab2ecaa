"""A script of Fabric: its own loop, ``fabric.save`` and ``fabric.load``; the one line is ``attach``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from project_checks import assert_same_states, drawn, loader, same
from torch import Tensor, nn

from gpart import GPartConfig, attach, load_adapter

INPUTS = drawn(16, 6)
LABELS = (INPUTS[:, 0] > 0).long()

both_packages = pytest.mark.parametrize("package", ["lightning.fabric", "lightning_fabric"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.head = nn.Linear(6, 10), nn.Linear(10, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


def script(package: str, line: str, file: Path, epochs: int, resume: bool = False) -> tuple[Any, list[Tensor]]:
    """The user's script; ``line`` says where attach stands in it."""
    fabric = importlib.import_module(package).Fabric(accelerator="cpu", devices=1)
    model = Net()
    config = GPartConfig(d=7, target_modules=["a", "b"], modules_to_save=["head"])
    if line == "before":
        attach(model, config)
        model = fabric.setup(model)
    elif line == "after":
        model = fabric.setup(model)
        attach(model, config)
    else:
        model = fabric.setup(model)
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=0.05))
    data = fabric.setup_dataloaders(loader(INPUTS, LABELS))
    state = {"model": model, "optimizer": optimizer, "epoch": 0}
    if resume:
        fabric.load(file, state)
    losses = []
    for epoch in range(state["epoch"], epochs):
        for x, y in data:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        state["epoch"] = epoch + 1
        fabric.save(file, state)
    return model, losses


@both_packages
@pytest.mark.parametrize("line", ["before", "after"])
def test_with_the_line(package: str, line: str, tmp_path: Path) -> None:
    _, plain = script(package, "", tmp_path / "plain.ckpt", 1)
    model, losses = script(package, line, tmp_path / "line.ckpt", 1)
    assert same(losses[0], plain[0])
    assert not same(losses[-1], plain[-1])
    state, base = model.state_dict(), Net().state_dict()
    (theta,) = state.keys() - base.keys()
    assert theta == "gpart.default.theta"
    assert state[theta].count_nonzero() > 0
    moved = {name for name, value in base.items() if not same(state[name], value)}
    assert moved == {"head.weight", "head.bias"}


@both_packages
@pytest.mark.parametrize("line", ["", "before", "after"])
def test_resume(package: str, line: str, tmp_path: Path) -> None:
    whole, expected = script(package, line, tmp_path / "whole.ckpt", 2)
    _, half = script(package, line, tmp_path / "half.ckpt", 1)
    rest, losses = script(package, line, tmp_path / "half.ckpt", 2, resume=True)
    assert all(map(same, half + losses, expected))
    assert len(half + losses) == len(expected)
    assert_same_states(rest.state_dict(), whole.state_dict())


@both_packages
@pytest.mark.parametrize("line", ["before", "after"])
def test_its_own_save_and_load(package: str, line: str, tmp_path: Path) -> None:
    model, _ = script(package, line, tmp_path / "run.ckpt", 1)
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)["model"]
    reader = Net()
    adapter = attach(reader, GPartConfig(d=7, target_modules=["a", "b"], modules_to_save=["head"]))
    reader.load_state_dict(saved, strict=True)
    assert same(reader(INPUTS), model(INPUTS))
    adapter.save(tmp_path / "adapter")
    fresh = Net()
    load_adapter(fresh, tmp_path / "adapter")
    assert same(fresh(INPUTS), model(INPUTS))
