"""Pictures with their classes, as every source gives them, and the data set of some of them that a loader reads.

Invariant: a row's number and name are those in its source, whichever rows of the source are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from gpart.datamodules.common.epoch_sampler import Key
from gpart.datamodules.common.splits import Row
from gpart.datamodules.vision.reading import Reader, draw, read_rgb

Item = dict[str, Any]
"""``pixel_values`` (3, height, width), ``labels``, ``idx``, ``file``."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """All pictures of a source."""

    read: Reader
    """Reads the picture of a row."""
    labels: list[int]
    """The class of each row."""
    names: list[str]
    """The name of each row: its file below ``place``, or its split and number. No two rows have the same name."""
    classes: tuple[str, ...]
    """The classes' names, in the order of their numbers."""
    place: str
    """The folder, or the data set's name."""
    validation: int = 0
    """How many rows, the last ones, are those of the data set's own validation split."""
    wrong: tuple[str, ...] = ()
    """What is none of the rows, since it can't be used, with the reason."""

    def rows(self) -> list[Row]:
        """The class and the name of each row."""
        return list(zip(self.labels, self.names, strict=True))


@dataclass(frozen=True, eq=False)
class Images(Dataset[Item]):
    """A data set of some of the pictures, transformed.

    Args:
        pictures: all pictures.
        chosen: the rows that are used.
        transform: turns an RGB picture into the model's input.
        seed: the run's seed if the transform is random, else None.
    """

    pictures: Pictures
    chosen: list[int]
    transform: Callable[[Image.Image], Tensor]
    seed: str | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: Key | int) -> Item:
        # Lightning's overfit_batches replaces our sampler by one whose keys are plain positions.
        epoch, at = (0, key) if isinstance(key, int) else key
        row, own = self.chosen[at], self.pictures
        image = read_rgb(own.read, row, f"{own.names[row]} (row {row} of {own.place})")
        pixels = self.transform(image) if self.seed is None else draw(self.transform, image, self.seed, epoch, row)
        return {"pixel_values": pixels, "labels": own.labels[row], "idx": row, "file": own.names[row]}


@dataclass(frozen=True)
class Collate:
    """Stacks a batch. It is a class of its own, so that workers can pickle it without the DataModule.

    Args:
        labels: whether the batch holds ``labels``.
    """

    labels: bool = True

    def __call__(self, items: list[Item]) -> dict[str, Any]:
        """Returns the batch: ``pixel_values`` stacked, ``labels`` as int64, and the lists ``idx`` and ``file``."""
        batch: dict[str, Any] = {"pixel_values": torch.stack([item["pixel_values"] for item in items])}
        if self.labels:
            batch["labels"] = torch.tensor([item["labels"] for item in items])
        return {**batch, "idx": [item["idx"] for item in items], "file": [item["file"] for item in items]}
