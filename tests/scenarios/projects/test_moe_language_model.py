"""A language model with a mixture of experts, whose weights are 3-D parameters and no layer's ``weight``."""

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
    loader,
)
from torch import Tensor, nn

TOKENS = torch.randint(0, 20, (16, 6), generator=torch.Generator().manual_seed(0))


class Experts(nn.Module):
    def __init__(self, count: int, size: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(count, size, 2 * inner) * 0.2)
        self.down_proj = nn.Parameter(torch.randn(count, inner, size) * 0.2)

    def forward(self, x: Tensor, chosen: Tensor, share: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            rows = (chosen == expert).nonzero()[:, 0]
            gate, up = (x[rows] @ self.gate_up_proj[expert]).chunk(2, -1)
            out = (nn.functional.silu(gate) * up) @ self.down_proj[expert]
            result = result.index_add(0, rows, out * share[rows, None])
        return result


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(size), nn.Linear(size, size)
        self.router, self.experts = nn.Linear(size, 4, bias=False), Experts(4, size, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm(x)).cumsum(1)
        flat = x.flatten(0, 1)
        share, chosen = self.router(flat).softmax(-1).max(-1)
        return x + self.experts(flat, chosen, share).view_as(x)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList([Block(8), Block(8)])
        self.lm_head = nn.Linear(8, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(x)


def project(package: str) -> Project:
    pl = importlib.import_module(package)

    class Language(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Network()

        def training_step(self, batch: Any, index: int) -> Tensor:
            logits = self.model(batch[0][:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten())
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.05)

    line = {
        "d": 11,
        "target_modules": ["mix"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        "modules_to_save": ["lm_head"],
    }
    return Project(package, Language, lambda: loader(TOKENS), line, lambda module: module.model(TOKENS))


@both_packages
def test_with_the_line(package: str, tmp_path: Path) -> None:
    done = check_line(project(package), tmp_path)
    assert done.callback.adapter.size == 2 * (8 * 8 + 4 * 8 * 12 + 4 * 6 * 8)
    assert done.callback.adapter.delta("blocks.1.experts.down_proj").count_nonzero() > 0


@both_packages
def test_resume(package: str, tmp_path: Path) -> None:
    check_resume(project(package), tmp_path)


@both_packages
def test_its_own_save_and_load(package: str, tmp_path: Path) -> None:
    check_files(project(package), tmp_path)
