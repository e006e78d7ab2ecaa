"""A tagger: embeddings, an LSTM of two directions over packed sentences, a linear layer."""

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
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

WORDS = torch.randint(1, 30, (16, 7), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.arange(16) % 5 + 3
TAGS = (WORDS % 4).masked_fill(torch.arange(7) >= LENGTHS[:, None], -100)


def project(package: str) -> Project:
    pl = importlib.import_module(package)

    class Tagger(pl.LightningModule):
        def __init__(self, words: int = 30, size: int = 6) -> None:
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(1)
            self.embedding = nn.Embedding(words, size, padding_idx=0)
            self.dropout = nn.Dropout(0.2)
            self.lstm = nn.LSTM(size, size, num_layers=2, batch_first=True, bidirectional=True)
            self.tag = nn.Linear(2 * size, 4)

        def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(
                self.dropout(self.embedding(words)), lengths, batch_first=True, enforce_sorted=False
            )
            states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=words.shape[1])
            return self.tag(states)

        def training_step(self, batch: Any, index: int) -> Tensor:
            words, lengths, tags = batch
            loss = nn.functional.cross_entropy(self(words, lengths).flatten(0, 1), tags.flatten())
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    line = {
        "d": 9,
        "target_modules": ["embedding"],
        "target_parameters": r"lstm\.weight_(ih|hh)_l[01](_reverse)?",
        "modules_to_save": ["tag"],
    }
    data = lambda: loader(WORDS, LENGTHS, TAGS)  # noqa: E731
    return Project(package, Tagger, data, line, lambda module: module.eval()(WORDS, LENGTHS))


@both_packages
def test_with_the_line(package: str, tmp_path: Path) -> None:
    done = check_line(project(package), tmp_path)
    assert done.callback.adapter.delta("lstm.weight_hh_l1_reverse").count_nonzero() > 0


@both_packages
def test_resume(package: str, tmp_path: Path) -> None:
    check_resume(project(package), tmp_path)


@both_packages
def test_its_own_save_and_load(package: str, tmp_path: Path) -> None:
    check_files(project(package), tmp_path)
