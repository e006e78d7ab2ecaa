"""Several examples in one row, which the model treats as if each were alone.

Invariant: no example is split; every example's ``position_ids`` begin at 0, and from that Transformers makes the mask
that lets none attend to another; the first label of each is -100, so that none is predicted from another's end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from gpart.datamodules.mathematics.conversations import IGNORED, Encoded, labels_of


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Positions of the examples that share a row: first-fit decreasing, those of equal length in their order.

    Examples of one length are placed together: each row takes as many as fit before the next row is looked at, which is
    what first fit does with them one by one. A row more costs some vector operations per length only, so that the whole
    work is at most in proportion to the tokens.

    Args:
        lengths: each example's, at least 1.
        room: tokens in a row.

    Raises:
        ValueError: if an example is empty or longer than a row.

    Example:
        >>> pack([3, 5, 2, 2, 8], room=8)
        [[4], [1, 0], [2, 3]]
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for at, length in enumerate(lengths):
        if not 1 <= length <= room:
            raise ValueError(f"example {at} has {length} tokens, and a row has room for 1 to {room}")
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
    """The examples of each row.

    Args:
        examples: a Dataset of ``datasets`` or a list.
        rows: their positions, by row.
    """

    examples: Any
    rows: list[list[int]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> list[Encoded]:
        return [self.examples[at] for at in self.rows[row]]


@dataclass(frozen=True)
class PackedCollate:
    """Joins each row's examples. An object of its own: spawned workers pickle it without the datamodule.

    The batch holds ``use_cache`` (False), ``input_ids``, ``labels`` and ``position_ids``, and no ``attention_mask``:
    only with neither a mask nor a cache does Transformers look for borders in the positions. Its models make a cache
    unless they are told not to, and then attend across the borders without a word.

    Args:
        pad: the padding token's id.
    """

    pad: int

    def __call__(self, rows: list[list[Encoded]]) -> dict[str, Any]:
        """The batch, each row filled up to the longest by padding that is an example more."""
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
        # First in the batch: Lightning takes the batch's size from the first value that has one.
        return {
            "use_cache": False,
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "position_ids": torch.tensor(positions),
        }
