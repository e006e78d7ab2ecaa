"""The network: it knows no Lightning and no adapter."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

LABELS = ["good", "imbalance", "bearing"]


class VibrationNet(nn.Module):
    """Classifies a recording: (batch, samples) -> (batch, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 24, 15, stride=2)
        self.conv2 = nn.Conv1d(24, 48, 7, stride=2)
        self.head = nn.Linear(48, len(LABELS))

    def forward(self, recordings: Tensor) -> Tensor:
        """The logits."""
        hidden = torch.relu(self.conv1(recordings.unsqueeze(1)))
        return self.head(torch.relu(self.conv2(hidden)).mean(-1))


def read_base(file: str | Path) -> VibrationNet:
    """The network with the weights that the project trained earlier."""
    network = VibrationNet()
    network.load_state_dict(torch.load(file, weights_only=True))
    return network
