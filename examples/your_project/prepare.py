"""What you have already: recordings of two machines, and a network that was trained on the first of them.

Here they are made up. The second machine turns faster and is felt more weakly, so the network knows its sounds badly.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import torch
from network import LABELS, VibrationNet
from recordings import read
from torch import Tensor, nn

MACHINES = {"pump": (6.0, 1.0), "mill": (8.0, 0.7)}  # turns in a recording, and gain
COUNTS = {"train": 30, "test": 30}  # recordings of each label
SAMPLES = 128


def recording(label: str, turns: float, gain: float, draw: torch.Generator) -> Tensor:
    """One recording: a hum, for an imbalance a strong overtone, for a bad bearing a ringing once in each turn."""
    phase = 2 * math.pi * (turns * torch.linspace(0, 1, SAMPLES) + torch.rand(1, generator=draw))
    signal = phase.sin()
    if label == "imbalance":
        signal = signal + 0.6 * (2 * phase).sin()
    if label == "bearing":
        signal = signal + 0.6 * (6 * phase).sin() * (phase.sin() > 0.5)
    return gain * (signal + 0.4 * torch.randn(SAMPLES, generator=draw))


def write_recordings(folder: Path) -> None:
    """Writes both machines' recordings."""
    draw = torch.Generator().manual_seed(0)
    for machine, (turns, gain) in MACHINES.items():
        for split, count in COUNTS.items():
            for label in LABELS:
                place = folder / machine / split / label
                place.mkdir(parents=True, exist_ok=True)
                for number in range(count):
                    signal = recording(label, turns, gain, draw).tolist()
                    with (place / f"{number:03}.csv").open("w", newline="") as file:
                        writer = csv.writer(file)
                        writer.writerow(["time_s", "acceleration"])
                        writer.writerows([f"{at / SAMPLES:.4f}", f"{value:.4f}"] for at, value in enumerate(signal))


def train_base(folder: Path, file: Path) -> None:
    """Trains every weight on the pump, and saves them."""
    torch.manual_seed(0)
    network, (inputs, labels, _) = VibrationNet(), read(folder, "pump", "train")
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    torch.save(network.state_dict(), file)


if __name__ == "__main__":
    write_recordings(Path("runs/recordings"))
    train_base(Path("runs/recordings"), Path("runs/base.pt"))
    print("runs/recordings and runs/base.pt are there")
