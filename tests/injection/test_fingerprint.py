"""What a base is recognised by, and whether its bits have moved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpart.injection.fingerprint import exact_digests, moved

SHAPES = {"matrix": (300, 400), "filters": (64, 32, 3, 3), "experts": (4, 100, 200), "vector": (50_000,), "small": (5,)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", [0, -1])
def test_the_smallest_move_in_the_first_and_in_the_last_row_is_seen(shape, dtype, at):
    weights = {"w": torch.ones(shape, dtype=dtype), "other": torch.ones(3)}
    before = exact_digests(weights)
    assert list(before) == ["w", "other"]
    assert moved(before, exact_digests(weights)) == []
    row = weights["w"][at]
    last = row.reshape(-1)[at]
    last.copy_(torch.nextafter(last, torch.tensor(2.0, dtype=dtype)))
    assert moved(before, exact_digests(weights)) == ["w"]


def test_a_move_that_bfloat16_would_round_away_is_seen():
    weight = torch.rand(1000, 1000)
    before = exact_digests({"w": weight})
    weight.mul_(1 + 2**-20)
    assert moved(before, exact_digests({"w": weight})) == ["w"]


def test_moved_columns_are_seen_in_a_matrix_whose_rows_have_the_length_of_the_sampling():
    weight = torch.zeros(4096, 4096, dtype=torch.bfloat16)
    before = exact_digests({"w": weight})
    seen = 0
    for column in range(0, 4096, 64):
        weight[1:-1, column : column + 8] = 1  # not in the first and the last row
        seen += moved(before, exact_digests({"w": weight})) == ["w"]
        weight[:, column : column + 8] = 0
    assert seen >= 60  # of 64; positions at equal distances would all stand in one column


def test_what_was_converted_or_has_no_bits_is_not_compared():
    weight = torch.rand(3, 3)
    before = exact_digests({"w": weight, "meta": torch.ones(2, device="meta"), "later": nn.UninitializedParameter()})
    assert list(before) == ["w"]
    assert moved(before, exact_digests({"w": weight.bfloat16()})) == []
    assert moved(before, {}) == []
