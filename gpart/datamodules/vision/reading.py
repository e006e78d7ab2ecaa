"""Reads RGB pictures from files, an array or a table, and transforms them into the model's input.

Invariant: the transformed picture is a function of (seed, epoch, row). Random transforms draw from a generator that is
seeded with a hash of these three. So the number of workers or ranks does not change a picture, nor does resuming a run,
and the state of every other random generator stays as it is.
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
from gpart.errors import GPartError

# What Pillow raises for a damaged file. UnidentifiedImageError and "image file is truncated" are OSErrors.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)


class UnreadableImageError(GPartError):
    """A picture can't be read. The message is a single line, even when the error comes from a worker process."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's error again, with the whole traceback as its message. We keep its last line.
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


@dataclass(frozen=True, eq=False)
class FromFiles:
    """Reads files."""

    paths: list[str]

    def __call__(self, row: int) -> Image.Image:
        """Opens the picture of a row."""
        return Image.open(self.paths[row])


@dataclass(frozen=True, eq=False)
class FromArray:
    """Reads an array of shape (rows, height, width, 3), of type uint8."""

    data: np.ndarray[Any, Any]

    def __call__(self, row: int) -> Image.Image:
        """Makes the picture of a row."""
        return Image.fromarray(self.data[row])


@dataclass(frozen=True, eq=False)
class FromTable:
    """Reads a column of images, which are not decoded yet, in a table of ``datasets``."""

    data: Any
    column: str

    def __call__(self, row: int) -> Image.Image:
        """Opens the picture of a row."""
        cell = self.data[row][self.column]
        if cell is None:
            raise GPartError("there is no picture in this row")
        if cell["bytes"] is not None:
            return Image.open(io.BytesIO(cell["bytes"]))
        return Image.open(cell["path"])


Reader = Callable[[int], Image.Image]
"""Reads the picture of a row as it is stored. The readers are classes, so that workers can pickle them."""


def read_rgb(read: Reader, row: int, name: str) -> Image.Image:
    """Reads a row's picture, converts it to RGB and turns it upright as its EXIF data says.

    Greyscale is repeated in all three channels, the colours of a palette are looked up, and CMYK is converted as Pillow
    does. 16-bit greyscale is scaled to 8 bits (Pillow itself would clip it). An alpha channel is dropped, as Pillow's
    ``convert`` does, so that the colours stored under transparent pixels become visible.

    Args:
        read: reads a picture as it is stored.
        row: the row.
        name: the picture's name, for messages.

    Raises:
        UnreadableImageError: if there is no picture, it is damaged, or its pixels are floating-point numbers.
    """
    try:
        with read(row) as image:
            image.load()
            if image.mode == "F":
                raise GPartError("pixels are floating-point numbers, whose range is not known")
            return as_rgb(image)
    except DAMAGED as error:
        # On one line, since UnreadableImageError keeps only the last line of a worker's traceback.
        raise UnreadableImageError(f"can't read the picture {name}: {on_one_line(error)}") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture as RGB and upright, see :func:`read_rgb`."""
    return _rgb(_upright(image))


def on_one_line(error: Exception) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split())


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGED:  # the EXIF block is damaged, but not the pixels
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; Pillow may hold them as 32
        values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "P":  # first to RGBA: otherwise Pillow warns about transparent palettes
        image = image.convert("RGBA")
    return image.convert("RGB")


def training_transform(settings: Normalisation, scale: Sequence[float] = (0.08, 1.0), hflip: float = 0.5) -> v2.Compose:
    """The transform for training: a random crop, which is mirrored at random.

    Args:
        settings: the model's settings.
        scale: the smallest and the largest share of the picture's area that a crop takes. The default is that of
            RandomResizedCrop.
        hflip: the probability of mirroring. The default is that of RandomHorizontalFlip.
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
    """The transform for evaluation: the shorter side is resized, then the centre is cut out."""
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
    """Runs a random transform with a generator that is seeded from (seed, epoch, row).

    Args:
        transform: the transform. It draws from torch's global CPU generator, as those of torchvision.transforms.v2 do.
        image: the picture that it is run on.
        seed: the run's seed.
        epoch: the epoch, counted from 0.
        row: the row's number in its source, whatever its place in the batch.
    """
    digest = hashlib.sha256(f"{seed}:{epoch}:{row}".encode()).digest()
    # torch's CPU generator takes a seed of 32 bits. Only this generator is seeded: torch.manual_seed would also seed
    # the GPU's, which dropout draws from, and forking that one would start CUDA in the workers.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(digest[:4], "big"))
        return transform(image)


def path_name(path: str | Path, root: str | Path) -> str:
    """Returns a file's path relative to a folder, with forward slashes. It is the same on every machine."""
    return Path(path).relative_to(root).as_posix()
