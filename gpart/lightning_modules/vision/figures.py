"""Figures of a classifier's mistakes: the confusion matrix, and the pictures with the most confident mistakes.

Invariant: drawing changes nothing outside this module. It uses matplotlib's ``Figure`` and its Agg canvas only, so that
the user's own pyplot, backend and open figures stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

MOST_MISTAKES = 16
"""A grid of four by four."""
_MOST_NUMBERS = 20  # with more classes, there is no room for a number in each cell
_MOST_NAMES = 40  # with more classes, there is no room for a name at each row
_PLAIN: dict[str, Any] = {"parse_math": False}  # the name of a file or class may have dollar signs


@dataclass(frozen=True)
class Mistake:
    """A picture that was given a wrong class.

    Attributes:
        confidence: the probability of the wrong class.
        label: the true class.
        answer: the class given.
        file: the picture's name.
        picture: the picture, as :func:`shown` returns it.
    """

    confidence: float
    label: int
    answer: int
    file: str
    picture: NDArray[np.uint8]


def worst_mistakes(
    known: list[Mistake],
    pictures: Tensor,
    logits: Tensor,
    labels: Tensor,
    files: Sequence[str],
    most: int = MOST_MISTAKES,
) -> list[Mistake]:
    """Returns the most confident mistakes among those known so far and those of one more batch.

    Args:
        known: the mistakes of the batches before.
        pictures: the network's input, of shape (batch, channels, height, width).
        logits: the network's output, of shape (batch, classes).
        labels: the true classes, of shape (batch,).
        files: the pictures' names.
        most: how many mistakes are kept.

    Returns:
        The mistakes, the most confident first.
    """
    confidence, answers = logits.detach().float().softmax(-1).max(-1)
    wrong = (answers != labels).nonzero().squeeze(1)
    order = wrong[confidence[wrong].argsort(descending=True, stable=True)[:most]]
    least = known[-1].confidence if len(known) >= most else -1.0
    # Only pictures that may be among the worst are copied from the device.
    new = [
        Mistake(value, int(labels[i]), int(answers[i]), files[i], shown(pictures[i]))
        for i, value in zip(order.tolist(), confidence[order].tolist(), strict=True)
        if value > least
    ]
    return sorted([*known, *new], key=lambda mistake: -mistake.confidence)[:most]


def shown(picture: Tensor) -> NDArray[np.uint8]:
    """Turns a normalised picture (channels, height, width) into pixels (height, width, 3), from 0 to 255.

    The picture's minimum becomes 0 and its maximum 255. The mean and the standard deviation that it was normalised with
    belong to the DataModule, so that colours and contrast are not exactly those of the file. With one or two channels,
    the first is shown in grey; with more than three, the first three are shown as colours.

    Example:
        >>> shown(torch.tensor([[[-1.0, 0.0, 3.0]]]))[0].tolist()
        [[0, 0, 0], [64, 64, 64], [255, 255, 255]]
    """
    values = picture.detach().float().cpu().nan_to_num()
    values = values[:3] if len(values) >= 3 else values[:1].expand(3, -1, -1)
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else torch.zeros_like(values)
    pixels: NDArray[np.uint8] = (scaled * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels


def confusion_figure(table: Tensor, names: Sequence[str]) -> Figure:
    """Draws the confusion matrix. A cell's colour is the share of the true class (row) that was given a class (column).

    With up to 20 classes, each cell also shows its number of pictures. With up to 40 classes, the rows and columns show
    the classes' names. With more classes there is no room for text.

    Args:
        table: the counts, of shape (classes, classes), with a row for each true class.
        names: the classes' names.
    """
    counts = table.detach().cpu().double().numpy()
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    named = classes <= _MOST_NAMES
    side = 4 + 0.3 * classes if named else 9.0
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    # Colours follow the square root of the shares. Else single mistakes among many classes would be too pale to see.
    image = axes.imshow(shares, norm=PowerNorm(0.5, vmin=0, vmax=1), cmap="Blues", interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("share of the true class")
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    axes.set_title(f"{int(counts.sum()):,} pictures, {100 * accuracy:.2f} % right")
    places = range(classes) if named else []
    short = [_short(name) for name in names] if named else []
    axes.set_xticks(places, short, rotation=90, **_PLAIN)
    axes.set_yticks(places, short, **_PLAIN)
    order = "" if named else f" (all {classes}, in order)"
    axes.set_xlabel(f"class given{order}")
    axes.set_ylabel(f"true class{order}")
    if classes <= _MOST_NUMBERS:
        for row, column in np.argwhere(counts > 0):
            dark = shares[row, column] > 0.3
            text = f"{int(counts[row, column])}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    return figure


def mistakes_figure(mistakes: Sequence[Mistake], names: Sequence[str]) -> Figure:
    """Draws the mistakes in a grid, each with its true class, the class given, and its file.

    Args:
        mistakes: the mistakes, in the order in which they are drawn; at least one.
        names: the classes' names.
    """
    columns = min(4, len(mistakes))
    rows = math.ceil(len(mistakes) / columns)
    figure = Figure(figsize=(2.8 * columns, 3.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, mistake in zip(grid, mistakes, strict=False):
        axes.imshow(mistake.picture, interpolation="nearest")
        label, answer = _short(names[mistake.label]), _short(names[mistake.answer])
        title = f"true: {label}\n{100 * mistake.confidence:.0f} %: {answer}\n{_short(mistake.file, tail=True)}"
        axes.set_title(title, fontsize=8, **_PLAIN)
    return figure


def rendered(figure: Figure) -> NDArray[np.uint8]:
    """Returns the figure's pixels, of shape (height, width, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib's stubs leave these two out
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()


def _short(text: str, tail: bool = False, most: int = 30) -> str:
    """Shortens a text. With ``tail``, its end is kept, which says more of a file's path than its beginning."""
    if len(text) <= most:
        return text
    return f"…{text[1 - most :]}" if tail else f"{text[: most - 1]}…"
