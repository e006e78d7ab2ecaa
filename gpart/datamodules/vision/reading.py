"""From a file, an array or a table's cell to an RGB picture, and to what the model takes.

Invariant: the picture of a row is a function of (seed, epoch, row): random transforms draw from a generator started with
their hash, so that neither the number of workers or ranks nor a resumption changes it, and no other generator moves.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from gpart.datamodules.vision.settings import Normalisation

# What Pillow raises for a damaged file; UnidentifiedImageError and "image file is truncated" are OSErrors.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)


class UnreadableImageError(ValueError):
    """A picture that can't be read; the message is one line, also when it comes out of a worker process."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's error again with the whole traceback as its message.
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


@dataclass(frozen=True, eq=False)
class FromFiles:
    """Reads files."""

    paths: list[str]

    def __call__(self, row: int) -> Image.Image:
        """The picture of a row, as it is stored."""
        return Image.open(self.paths[row])


@dataclass(frozen=True, eq=False)
class FromArray:
    """Reads an array of shape (rows, height, width, 3), of bytes."""

    data: np.ndarray[Any, Any]

    def __call__(self, row: int) -> Image.Image:
        """The picture of a row."""
        return Image.fromarray(self.data[row])


@dataclass(frozen=True, eq=False)
class FromTable:
    """Reads a column of a ``datasets`` table whose images are not decoded, in its rows' order."""

    data: Any
    column: str

    def __call__(self, row: int) -> Image.Image:
        """The picture of a row, as it is stored."""
        cell = self.data[row][self.column]
        if cell is None:
            raise ValueError("there is no picture in this row")
        if cell["bytes"] is not None:
            return Image.open(io.BytesIO(cell["bytes"]))
        return Image.open(cell["path"])


Reader = Callable[[int], Image.Image]
"""Gives a row's picture as it is stored; an object of its own, so that spawned workers can pickle it."""


def read_rgb(read: Reader, row: int, name: str) -> Image.Image:
    """A row's picture in RGB, turned upright as its EXIF data says.

    Greyscale is repeated, palettes are looked up, CMYK is converted as Pillow does. 16-bit greyscale is scaled to 8 bits
    (Pillow itself would clip it). An alpha channel is dropped, as Pillow's ``convert`` does: the colours stored under
    transparent pixels show.

    Args:
        read: gives the picture as it is stored.
        row: which one.
        name: what messages call it.

    Raises:
        UnreadableImageError: if it is not there, damaged, no picture, or one of floating-point numbers.
    """
    try:
        with read(row) as image:
            image.load()
            if image.mode == "F":
                raise ValueError("pixels are floating-point numbers, whose range is not known")
            return _rgb(_upright(image))
    except _DAMAGED as error:
        # One line: the class takes the last one of a worker's traceback.
        raise UnreadableImageError(f"can't read the picture {name}: {' '.join(str(error).split())}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGED:  # a damaged EXIF block spoils no pixel
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow also holds as 32
        values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "P":  # by way of RGBA: Pillow warns of transparent palettes else
        image = image.convert("RGBA")
    return image.convert("RGB")


def training_transform(settings: Normalisation, scale: Sequence[float] = (0.08, 1.0), hflip: float = 0.5) -> v2.Compose:
    """A random part of the picture, at random mirrored.

    Args:
        settings: the model's.
        scale: the smallest and the largest share of the picture's area, RandomResizedCrop's default.
        hflip: the probability of mirroring, RandomHorizontalFlip's default.
    """
    mode = v2.InterpolationMode(settings.interpolation)
    return v2.Compose(
        [
            v2.RandomResizedCrop(settings.size, scale=list(scale), interpolation=mode),
            v2.RandomHorizontalFlip(hflip),
            *_to_tensor(settings),
        ]
    )


def evaluation_transform(settings: Normalisation) -> v2.Compose:
    """The centre of the picture, its shorter side resized before."""
    mode = v2.InterpolationMode(settings.interpolation)
    return v2.Compose(
        [
            v2.Resize(settings.resize, interpolation=mode),
            v2.CenterCrop(settings.size),
            *_to_tensor(settings),
        ]
    )


def _to_tensor(settings: Normalisation) -> list[v2.Transform]:
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(settings.mean), list(settings.std)),
        v2.ToPureTensor(),
    ]


def draw(transform: Callable[[Image.Image], Tensor], image: Image.Image, seed: str, epoch: int, row: int) -> Tensor:
    """Runs a random transform as (seed, epoch, row) say.

    Args:
        transform: draws from torch's global generator of the CPU, as those of torchvision.transforms.v2 do.
        image: what it is run on.
        seed: the run's.
        epoch: from 0.
        row: the row's number, whatever its place in the batch.
    """
    digest = hashlib.sha256(f"{seed}:{epoch}:{row}".encode()).digest()
    # torch's CPU generator is started by 32 bits. Only that one: torch.manual_seed would also set the GPU's, from which
    # dropout draws, and forking those would start CUDA in the workers.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(digest[:4], "big"))
        return transform(image)


def path_name(path: str | Path, root: str | Path) -> str:
    """A file's name below a folder, with forward slashes on every platform: part of no path of this machine."""
    return Path(path).relative_to(root).as_posix()
