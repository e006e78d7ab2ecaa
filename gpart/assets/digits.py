"""Turns the table of handwritten digits that scikit-learn ships into pictures, with one folder for each class.

Invariant: the picture ``DIGIT/ROW.png`` is row ROW of the table. It is greyscale and has 8 x 8 pixels; the table's
shades from 0 to 16 become the values from 0 to 255.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from gpart.errors import GPartError

SIDE, SHADES, ROWS = 8, 16, 1797


def convert(source: Path, folder: Path) -> None:
    """Writes the pictures of ``digits.csv.gz``.

    Args:
        source: the table. Each of its rows holds 64 shades from 0 to 16, in row-major order, and then the digit.
        folder: an existing folder; the folders ``0`` to ``9`` are made in it.

    Raises:
        GPartError: if the file is not such a table.
    """
    try:
        text = gzip.decompress(source.read_bytes()).decode("ascii")
        table = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.int64, ndmin=2)
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise GPartError(f"{source} is no table of digits: {error}") from error
    if table.shape != (ROWS, SIDE * SIDE + 1):
        raise GPartError(f"{source} has the shape {table.shape}, expected {(ROWS, SIDE * SIDE + 1)}")
    shades, labels = table[:, :-1], table[:, -1]
    if shades.min() < 0 or shades.max() > SHADES or set(labels.tolist()) != set(range(10)):
        raise GPartError(
            f"{source} has shades from {shades.min()} to {shades.max()}, expected 0 to {SHADES}, and the labels "
            f"{sorted(set(labels.tolist()))}, expected 0 to 9"
        )
    pixels = np.round(shades * (255 / SHADES)).astype(np.uint8).reshape(-1, SIDE, SIDE)
    for digit in range(10):
        (folder / str(digit)).mkdir()
    for row, (picture, digit) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        Image.fromarray(picture).save(folder / str(digit) / f"{row:04d}.png")
