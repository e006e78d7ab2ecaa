"""A model with every kind of layer that a layout has to know: tied, padded, sliced, transposed, of one dimension."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from gpart import GPartConfig, attach
from gpart.adapter import GPartAdapter


class Conv1D(nn.Module):
    """Transformers' layer of this name: its weight is (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6, padding_idx=2)
        self.first = nn.Embedding(5, 4, padding_idx=0)
        self.attention = nn.MultiheadAttention(6, 2)
        self.apart = nn.MultiheadAttention(6, 2, kdim=3, vdim=5)
        self.qkv = nn.Linear(6, 9)
        self.square = nn.Linear(6, 6)
        self.turned = Conv1D(12, 6)
        self.squared = Conv1D(6, 6)
        self.picture = nn.Conv2d(3, 4, 2)
        self.norm = nn.LayerNorm(6)
        self.cell = nn.LSTM(6, 4)
        self.output = nn.Linear(6, 7, bias=False)
        self.output.weight = self.embedding.weight
        self.head = nn.Linear(6, 3)
        self.twin = nn.Linear(6, 9)
        self.twin.weight = self.qkv.weight
        self.register_buffer("seen", torch.zeros(2))


def many(seed: int = 0) -> Many:
    torch.manual_seed(seed)
    return Many()


def adapted(theta_seed: int = 1, base_seed: int = 0, **settings: Any) -> GPartAdapter:
    """An adapter on it with a random theta."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*leaves out .* of the numbers")  # meant so here
        adapter = attach(many(base_seed), GPartConfig(**settings))
    with torch.no_grad():
        adapter.theta.copy_(torch.randn(adapter.theta.shape, generator=torch.Generator().manual_seed(theta_seed)))
    return adapter


def deltas(adapter: GPartAdapter) -> dict[str, Tensor]:
    """P·theta of every adapted weight as the live model has it, in float64."""
    return {weight.name: adapter.delta(weight.name).detach().double() for weight in adapter.plan.weights}
