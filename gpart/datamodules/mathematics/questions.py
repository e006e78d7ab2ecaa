"""Questions to generate answers from: left-padded batches, shared among ranks.

Invariant: every rank has the same number of batches, and of all that the ranks are given, what is not marked as repeated
is each question exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch.utils.data import Dataset, DistributedSampler

Turn = tuple[int, bool]
"""A question's position, and whether it is a repetition that only fills up a rank's share."""


class Question(TypedDict):
    """A prompt, its row's number in its source, its text, its solution (None where there is none), its source."""

    input_ids: list[int]
    idx: int
    question: str
    reference: str | None
    benchmark: str


class Questions(Dataset[dict[str, Any]]):
    """Questions in the order of their length, the longest first, so that little of a batch is padding.

    Args:
        questions: in any order.
    """

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = sorted(questions, key=lambda one: -len(one["input_ids"]))

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, turn: Turn | int) -> dict[str, Any]:
        # Lightning's overfit_batches replaces the sampler by one of plain positions.
        at, repeated = (turn, False) if isinstance(turn, int) else turn
        return {**self.questions[at], "repeated": repeated}


class QuestionSampler(DistributedSampler[Turn]):
    """A rank's share of the questions, in their order; the shares are made equal by repeating the last question.

    It is a DistributedSampler, also on one rank, so that Lightning leaves it in place.

    Args:
        length: how many questions there are.
        ranks: how many processes share them.
        rank: which of them this is.

    Example:
        >>> [list(QuestionSampler(3, ranks=2, rank=rank)) for rank in range(2)]
        [[(0, False), (2, False)], [(1, False), (2, True)]]
    """

    def __init__(self, length: int, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(range(length), num_replicas=ranks, rank=rank, shuffle=False)  # type: ignore[arg-type]  # it has a length
        self.length = length

    def __iter__(self) -> Iterator[Turn]:
        share = range(self.rank, self.total_size, self.num_replicas)
        return iter([(min(at, self.length - 1), at >= self.length) for at in share])


@dataclass(frozen=True)
class QuestionCollate:
    """Pads prompts on the left. An object of its own: spawned workers pickle it without the datamodule.

    Args:
        pad: the padding token's id.
    """

    pad: int

    def __call__(self, questions: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch: ``input_ids``, ``attention_mask``, and the rest as lists; no ``reference`` where there is none."""
        longest = max(len(one["input_ids"]) for one in questions)
        rest = [longest - len(one["input_ids"]) for one in questions]
        names = ["idx", "question", "benchmark", "repeated"]
        if all(one["reference"] is not None for one in questions):
            names.append("reference")
        return {
            "input_ids": torch.tensor(
                [[self.pad] * left + one["input_ids"] for left, one in zip(rest, questions, strict=True)]
            ),
            "attention_mask": torch.tensor([[0] * left + [1] * (longest - left) for left in rest]),
            **{name: [one[name] for one in questions] for name in names},
        }
