"""Packing: several examples share one row, and the model treats each as if it were alone.

Invariant: no example is split. The ``position_ids`` of every example begin at 0; from that, Transformers makes the mask
that keeps an example from attending to another one. The first label of every example is -100, so that no token is
predicted from the end of another example.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from gpart.datamodules.mathematics.loss_batches import IGNORED, Encoded, labels_of
from gpart.errors import GPartError


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Assigns examples to rows, by first-fit decreasing.

    Examples of equal length keep their order. They are placed together: each row takes as many of them as fit before
    the next row is looked at. The result is that of first fit with one example at a time. This way, each length takes a
    few vector operations over the rows, so that the work grows at most in proportion to the number of tokens.

    Args:
        lengths: the length of each example, at least 1.
        room: the number of tokens in a row.

    Returns:
        For each row, the positions of its examples.

    Raises:
        GPartError: if an example is empty or longer than a row.

    Example:
        >>> pack([3, 5, 2, 2, 8], room=8)
        [[4], [1, 0], [2, 3]]
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for at, length in enumerate(lengths):
        if not 1 <= length <= room:
            raise GPartError(f"example {at} has {length} tokens, and a row has room for 1 to {room}")
        groups[length].append(at)
    rows: list[list[int]] = []
    free = torch.empty(0, dtype=torch.int64)
    for length in sorted(groups, reverse=True):
        members = groups[length]
        fitting = free // length
        earlier = fitting.cumsum(0) - fitting
        taken = torch.minimum(fitting, len(members) - earlier).clamp(min=0)
        at = 0
        for row in taken.nonzero().flatten().tolist():
            count = int(taken[row])
            rows[row] += members[at : at + count]
            at += count
        new = [members[start : start + room // length] for start in range(at, len(members), room // length)]
        rows += new
        free = torch.cat([free - taken * length, torch.tensor([room - length * len(row) for row in new]).long()])
    return rows


@dataclass(frozen=True, eq=False)
class Packs(Dataset[list[Encoded]]):
    """A data set of rows: each item is the list of the examples in one row.

    Args:
        examples: a Dataset of ``datasets`` or a list.
        rows: the positions of the examples in each row.
    """

    examples: Any
    rows: list[list[int]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> list[Encoded]:
        return [self.examples[at] for at in self.rows[row]]


@dataclass(frozen=True)
class PackedCollate:
    """Joins the examples of each row. It is a class of its own, so that workers can pickle it without the DataModule.

    The batch holds ``use_cache`` (False), ``input_ids``, ``labels`` and ``position_ids``, but no ``attention_mask``.
    Transformers looks for the examples' borders in the positions only if there is neither a mask nor a cache. By
    default, its models make a cache, and would then silently attend across the borders.

    Args:
        pad: the padding token's id.
    """

    pad: int

    def __call__(self, rows: list[list[Encoded]]) -> dict[str, Any]:
        """Returns the batch. A row is filled up to the longest one by padding, which counts as one more example."""
        longest = max(sum(len(one["input_ids"]) for one in row) for row in rows)
        ids: list[list[int]] = []
        labels: list[list[int]] = []
        positions: list[list[int]] = []
        for row in rows:
            rest = longest - sum(len(one["input_ids"]) for one in row)
            lengths = [len(one["input_ids"]) for one in row] + [rest]
            ids.append([token for one in row for token in one["input_ids"]] + [self.pad] * rest)
            labels.append([label for one in row for label in labels_of(one)] + [IGNORED] * rest)
            positions.append([at for length in lengths for at in range(length)])
        # use_cache comes first: behind a tensor, it would make Lightning warn that the batch's size is ambiguous.
        return {
            "use_cache": False,
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "position_ids": torch.tensor(positions),
        }
