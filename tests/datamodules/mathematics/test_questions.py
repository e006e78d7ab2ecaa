"""Questions to generate from: left padding, and each question once on any number of ranks."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch.utils.data import DistributedSampler

from gpart.datamodules.mathematics.questions import QuestionCollate, Questions, QuestionSampler


def question(idx: int, length: int, reference: str | None = "so") -> dict[str, Any]:
    return {
        "input_ids": list(range(1, length + 1)),
        "idx": idx,
        "question": f"what is {idx}?",
        "reference": reference,
        "benchmark": "gsm8k",
        "place": f"file {idx}",
    }


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 12, 13, 14])
def test_each_question_counts_once_and_every_rank_has_as_many(count: int, ranks: int) -> None:
    samplers = [QuestionSampler(count, ranks, rank) for rank in range(ranks)]
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])} == {-(-count // ranks)}
    counted = [at for share in shares for at, repeated in share if not repeated]
    assert sorted(counted) == list(range(count))
    assert all(0 <= at < count for share in shares for at, _ in share)
    assert isinstance(samplers[0], DistributedSampler)  # so that Lightning leaves it in place


def test_the_longest_come_first_and_equal_ones_in_their_order() -> None:
    data = Questions([question(0, 2), question(1, 5), question(2, 2), question(3, 7)])
    assert [data[at]["idx"] for at in range(len(data))] == [3, 1, 0, 2]
    assert (data[1, True]["repeated"], data[1, False]["repeated"], data[1]["repeated"]) == (True, False, False)
    assert data[1, True]["idx"] == 1


def test_a_batch_of_questions_has_these_values() -> None:
    data = Questions([question(0, 1), question(1, 3)])
    batch = pickle.loads(pickle.dumps(QuestionCollate(pad=9)))([data[0, False], data[1, True]])
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    assert {name: getattr(value, "tolist", lambda value=value: value)() for name, value in batch.items()} == {
        "input_ids": [[1, 2, 3], [9, 9, 1]],
        "attention_mask": [[1, 1, 1], [0, 0, 1]],
        "idx": [1, 0],
        "question": ["what is 1?", "what is 0?"],
        "benchmark": ["gsm8k", "gsm8k"],
        "place": ["file 1", "file 0"],
        "repeated": [False, True],
        "reference": ["so", "so"],
    }
    own = Questions([question(0, 1, None)])
    assert "reference" not in QuestionCollate(pad=9)([own[0]])
