"""A small model, and an adapter on it that has learned something."""

from __future__ import annotations

import torch
from torch import nn

from gpart import GPartConfig, attach
from gpart.adapter import GPartAdapter


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def adapted() -> GPartAdapter:
    adapter = attach(base(), GPartConfig(d=5, target_modules=["0"]))
    with torch.no_grad():
        adapter.theta.normal_()
    return adapter
