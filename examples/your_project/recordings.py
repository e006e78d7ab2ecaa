"""Recordings on disk: ``MACHINE/SPLIT/LABEL/NUMBER.csv``, a time and an acceleration in each line."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from network import LABELS
from torch import Tensor


def read(folder: str | Path, machine: str, split: str) -> tuple[Tensor, Tensor, list[str]]:
    """All recordings of a machine's split, (count, samples), with their labels and their files."""
    values, labels, files = [], [], []
    for number, label in enumerate(LABELS):
        for file in sorted(Path(folder, machine, split, label).glob("*.csv")):
            with file.open(newline="") as lines:
                values.append([float(line["acceleration"]) for line in csv.DictReader(lines)])
            labels.append(number)
            files.append(str(file))
    if not files:
        raise FileNotFoundError(f"no recordings in {Path(folder, machine, split)}: run prepare.py first")
    return torch.tensor(values), torch.tensor(labels), files
