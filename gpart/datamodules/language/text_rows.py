"""From people's own rows to labelled, tokenised examples.

Invariant: every row that is returned has a text in each text column, and a label that is one of the classes or a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, concatenate_datasets
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedTokenizerBase

from gpart.datamodules.common.own_rows import BadRows, Row, key_of
from gpart.datamodules.language.text_labels import Labels
from gpart.datamodules.language.text_parts import Labelled

_AT_ONCE = 1000  # texts that are tokenised together: what is kept then is compact


def with_texts(rows: Sequence[Row], texts: Sequence[str], bad: BadRows) -> list[Row]:
    """The rows that have all their texts; the others are bad ones."""
    kept = []
    for row in rows:
        wrong = [name for name in texts if not isinstance(row.values.get(name), str) or not row.values[name].strip()]
        if not wrong:
            kept.append(row)
        elif not any(value is not None and str(value).strip() for value in row.values.values()):
            bad.add_text(f"{row.place} is empty")
        else:
            missing = row.values.get(wrong[0]) is None or isinstance(row.values[wrong[0]], str)
            bad.add(row, wrong[0], "has no text" if missing else "is no text")
    return kept


def labelled(rows: Sequence[Row], texts: Sequence[str], labels: Labels, bad: BadRows) -> list[Labelled]:
    """The rows with their labels; those without are bad ones."""
    found = ((row, labels.encode(row, bad.add)) for row in rows)
    return [
        Labelled(row, key_of([row.values[name] for name in texts]), label) for row, label in found if label is not None
    ]


def encode(
    rows: Sequence[Row], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, labels: list[Any] | None
) -> Dataset:
    """Tokenises rows.

    Returns:
        The tokenizer's columns, ``idx``, the rows' places in their file from 0, and ``labels`` if they are given.
    """
    chunks = []
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        columns = [[row.values[name] for row in some] for name in texts]
        tokens = dict(tokenizer(*columns, truncation="longest_first", max_length=length))
        tokens["idx"] = [row.number - 1 for row in some]
        if labels is not None:
            tokens["labels"] = labels[start : start + _AT_ONCE]
        chunks.append(Dataset.from_dict(tokens))
    return concatenate_datasets(chunks)


@dataclass(frozen=True, eq=False)
class WithValues(TorchDataset[Any]):
    """Encoded rows, each with the values that its row has in the file."""

    encoded: Dataset
    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {**self.encoded[at], "rows": self.rows[at]}
