"""Makes a folder of pictures, one folder for each class, of the handwritten digits that scikit-learn carries.

Invariant: picture ``DIGIT/ROW.png`` is row ROW of the table, 8 x 8 in greyscale, its 17 shades spread over 0 to 255.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, SHADES, ROWS = 8, 16, 1797


def convert(source: Path, folder: Path) -> None:
    """Writes the pictures of ``digits.csv.gz``.

    Args:
        source: the table: in each row 64 shades from 0 to 16, row by row of the picture, and the digit.
        folder: where to; gets the folders ``0`` to ``9``.

    Raises:
        ValueError: if the file is no such table.
    """
    try:
        text = gzip.decompress(source.read_bytes()).decode("ascii")
        table = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.int64, ndmin=2)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{source} is no table of digits: {error}") from error
    if table.shape != (ROWS, SIDE * SIDE + 1):
        raise ValueError(f"{source} has the shape {table.shape}, expected {(ROWS, SIDE * SIDE + 1)}")
    shades, labels = table[:, :-1], table[:, -1]
    if shades.min() < 0 or shades.max() > SHADES or set(labels.tolist()) != set(range(10)):
        raise ValueError(
            f"{source} has shades from {shades.min()} to {shades.max()}, expected 0 to {SHADES}, and the labels "
            f"{sorted(set(labels.tolist()))}, expected 0 to 9"
        )
    pixels = np.round(shades * (255 / SHADES)).astype(np.uint8).reshape(-1, SIDE, SIDE)
    for digit in range(10):
        (folder / str(digit)).mkdir()
    for row, (picture, digit) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        Image.fromarray(picture).save(folder / str(digit) / f"{row:04d}.png")
