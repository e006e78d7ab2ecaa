"""Writes the folders of tests/serialization/test_projection_files.py, one for each projection: run with this version."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import nn

from gpart import GPartAdapter, GPartConfig, attach
from gpart.config import PROJECTIONS


def network() -> nn.Sequential:
    """The same numbers on every machine."""
    net = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))
    with torch.no_grad():
        for number, value in enumerate(net.parameters()):
            value.copy_((torch.arange(value.numel()) * 37 % 101 - 50).view(value.shape) / 64 + number / 8)
    return net


def digest(adapter: GPartAdapter) -> str:
    """SHA-256 of W0 + P·theta's bits, weight after weight."""
    merged = adapter.merged_weights().values()
    return hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in merged)).hexdigest()


def main(out: Path) -> None:
    """Writes a folder for each, and what W0 + P·theta comes to."""
    digests = {}
    for projection in PROJECTIONS:
        config = GPartConfig(37, ["0"], ["2"], seed=11, bias="all", projection=projection)
        adapter = attach(network(), config)
        with torch.no_grad():
            adapter.theta.copy_((torch.arange(37) * 29 % 37 - 18) / 16)
        adapter.save(out / projection)
        digests[projection] = digest(adapter)
    (out / "merged.json").write_text(json.dumps(digests, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
