"""The adapter where it is used: a plain network, without Lightning and without this project's modules for it."""

from __future__ import annotations

import torch
from network import VibrationNet, read_base
from recordings import read
from torch import Tensor

from gpart import load_adapter


def logits(network: VibrationNet, machine: str) -> tuple[Tensor, float]:
    """What the network says of a machine's test recordings, and the part of it that is right."""
    inputs, labels, _ = read("runs/recordings", machine, "test")
    with torch.no_grad():
        out = network(inputs)
    return out, (out.argmax(-1) == labels).float().mean().item()


if __name__ == "__main__":
    network = read_base("runs/base.pt").eval()
    on_pump, pump = logits(network, "pump")
    _, before = logits(network, "mill")
    adapter = load_adapter(network, "runs/adapters/mill")
    _, after = logits(network, "mill")
    print(f"mill: {before:.4f} by the base, {after:.4f} by {adapter}")
    adapter.detach()
    again, _ = logits(network, "pump")
    print(f"pump: {pump:.4f}, and the same to the bit without the adapter: {torch.equal(again, on_pump)}")
