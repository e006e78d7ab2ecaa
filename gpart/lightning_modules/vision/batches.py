"""What a batch of pictures is checked for, how it is mixed, and what its pictures are called."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gpart.errors import GPartError


def check_labels(labels: Tensor, num_labels: int, files: list[str]) -> None:
    """Checks that every label is a class.

    Raises:
        GPartError: if one is not. The message names the first such label, its picture, and the number of classes.
    """
    outside = ((labels < 0) | (labels >= num_labels)).nonzero().flatten().tolist()
    if outside:
        first = outside[0]
        raise GPartError(
            f"{files[first]} has label {int(labels[first])}, but num_labels={num_labels}: labels are 0 to"
            f" {num_labels - 1}; {len(outside)} of this batch's {len(labels)} are outside"
        )


def mixing_share(alpha: float, *seed: int) -> float:
    """Draws a share from Beta(alpha, alpha). It depends only on the numbers given, not on what was drawn before."""
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def names_of(batch: dict[str, Any]) -> list[str]:
    """Returns names of a batch's pictures, for messages: their files, else their numbers, else their places."""
    if "file" in batch:
        return list(batch["file"])
    return [f"picture {i}" for i in batch.get("idx", range(len(batch["pixel_values"])))]
