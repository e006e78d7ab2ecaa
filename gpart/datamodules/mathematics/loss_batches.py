"""Batches for the loss: examples padded on the right, and which of their tokens are targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch

IGNORED = -100
"""The label of a token that is no target of the loss."""


class Encoded(TypedDict):
    """An example: its tokens, how many of the first ones are no targets of the loss, and the number of its row."""

    input_ids: list[int]
    prompt: int
    idx: int


def labels_of(example: Encoded) -> list[int]:
    """Returns an example's labels: its tokens, with -100 in place of the first ones, which are no targets.

    >>> labels_of({"input_ids": [7, 8, 9], "prompt": 2, "idx": 0})
    [-100, -100, 9]
    """
    return [IGNORED] * example["prompt"] + example["input_ids"][example["prompt"] :]


@dataclass(frozen=True)
class LossCollate:
    """Pads examples on the right. It is a class of its own, so that workers can pickle it without the DataModule.

    Args:
        pad: the padding token's id.
    """

    pad: int

    def __call__(self, examples: list[Encoded]) -> dict[str, torch.Tensor]:
        """Returns the batch: ``input_ids``, ``attention_mask`` and ``labels``, each of shape (batch, tokens)."""
        longest = max(len(one["input_ids"]) for one in examples)
        rest = [longest - len(one["input_ids"]) for one in examples]
        pairs = list(zip(examples, rest, strict=True))
        return {
            "input_ids": torch.tensor([one["input_ids"] + [self.pad] * right for one, right in pairs]),
            "attention_mask": torch.tensor([[1] * (longest - right) + [0] * right for right in rest]),
            "labels": torch.tensor([labels_of(one) + [IGNORED] * right for one, right in pairs]),
        }
