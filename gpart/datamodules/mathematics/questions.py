"""Questions to generate answers from: left-padded batches, shared among ranks.

Invariant: every rank has the same number of batches. Over all ranks together, each question occurs exactly once that is
not marked as repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch.utils.data import Dataset, DistributedSampler

Turn = tuple[int, bool]
"""A question's position, and whether it is a repetition that only fills up the share of a rank."""


class Question(TypedDict):
    """A question with its prompt."""

    input_ids: list[int]
    """The tokens of the prompt."""
    idx: int
    """The number of its row in its data set."""
    question: str
    reference: str | None
    """The whole solution; None if there is none."""
    benchmark: str
    """The name of the benchmark that it is from."""
    place: str
    """The data set or the file that its row is in, for messages; empty if there is none."""


class OwnQuestion(Question):
    """A question of a user's own file."""

    rows: dict[str, Any]
    """What its row has in the file, which stands beside the prediction."""


class Questions(Dataset[dict[str, Any]]):
    """Questions sorted by the length of their prompts, the longest first, so that little of a batch is padding.

    Args:
        questions: the questions, in any order.
    """

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = sorted(questions, key=lambda one: -len(one["input_ids"]))

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, turn: Turn | int) -> dict[str, Any]:
        # Lightning's overfit_batches replaces our sampler by one that yields plain positions.
        at, repeated = (turn, False) if isinstance(turn, int) else turn
        return {**self.questions[at], "repeated": repeated}


class QuestionSampler(DistributedSampler[Turn]):
    """Yields a rank's share of the questions, in order. The last question is repeated, so that all shares are equal.

    It is a DistributedSampler, even on one rank, so that Lightning leaves it in place.

    Args:
        length: the number of questions.
        ranks: the number of processes that share them.
        rank: the number of this process.

    Example:
        >>> [list(QuestionSampler(3, ranks=2, rank=rank)) for rank in range(2)]
        [[(0, False), (2, False)], [(1, False), (2, True)]]
    """

    def __init__(self, length: int, ranks: int = 1, rank: int = 0) -> None:
        places: Any = range(length)  # declared as a Dataset, but only its length is used
        super().__init__(places, num_replicas=ranks, rank=rank, shuffle=False)
        self.length = length

    def __iter__(self) -> Iterator[Turn]:
        share = range(self.rank, self.total_size, self.num_replicas)
        return iter([(min(at, self.length - 1), at >= self.length) for at in share])


@dataclass(frozen=True)
class QuestionCollate:
    """Pads prompts on the left. It is a class of its own, so that workers can pickle it without the DataModule.

    Args:
        pad: the padding token's id.
    """

    pad: int

    def __call__(self, questions: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the batch: ``input_ids``, ``attention_mask``, and lists of everything else.

        The list ``reference`` is left out if a question has none, and so is ``rows``.
        """
        longest = max(len(one["input_ids"]) for one in questions)
        rest = [longest - len(one["input_ids"]) for one in questions]
        names = ["idx", "question", "benchmark", "place", "repeated"]
        if all("rows" in one for one in questions):
            names.append("rows")
        if all(one["reference"] is not None for one in questions):
            names.append("reference")
        return {
            "input_ids": torch.tensor(
                [[self.pad] * left + one["input_ids"] for left, one in zip(rest, questions, strict=True)]
            ),
            "attention_mask": torch.tensor([[0] * left + [1] * (longest - left) for left in rest]),
            **{name: [one[name] for one in questions] for name in names},
        }
