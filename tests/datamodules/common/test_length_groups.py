"""Batches of like length: the same rows, less padding, one order on any number of ranks, also when resumed."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper

from gpart.datamodules.common.epoch_sampler import EpochSampler
from gpart.datamodules.common.length_groups import LengthGroupedSampler, scoring_order

LENGTHS = [min(2048, int(random.Random(7 + at).lognormvariate(5, 0.6)) + 1) for at in range(4000)]


def order(
    epoch: int = 0, batch_size: int = 4, ranks: int = 1, rank: int = 0, seed: str = "0", count: int = 4000
) -> list[int]:
    return LengthGroupedSampler(LENGTHS[:count], batch_size, seed, 0, ranks, rank).order(epoch)


def batches(positions: list[int], size: int) -> list[list[int]]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def padding(positions: list[int], size: int) -> float:
    """The part of all tokens that is padding."""
    whole = sum(max(LENGTHS[at] for at in one) * len(one) for one in batches(positions, size))
    return 1 - sum(LENGTHS[at] for at in positions) / whole


def test_every_row_comes_once_with_less_padding() -> None:
    for epoch in range(3):
        positions = order(epoch)
        assert sorted(positions) == list(range(4000))
        random_order = EpochSampler(4000, "0").order(epoch)
        assert padding(positions, 4) < 0.05
        assert padding(random_order, 4) > 0.35


def test_the_steps_are_in_no_order_of_length() -> None:
    means = [sum(LENGTHS[at] for at in one) / 4 for one in batches(order(), 4)]
    ups = sum(one < two for one, two in pairwise(means))
    assert 0.45 < ups / len(means) < 0.55


def test_a_last_step_that_is_not_full_shifts_no_other() -> None:
    assert padding(order(count=3998), 4) < 0.05


def test_each_epoch_takes_its_steps_in_its_order() -> None:
    """Of lengths that are all unlike, and few enough to be sorted together, the steps are the same in each epoch."""
    epochs = []
    for epoch in range(2):
        positions = LengthGroupedSampler(range(1, 41), 2, "0").order(epoch)
        epochs.append([tuple(one) for one in batches(positions, 2)])
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_each_epoch_and_seed_has_its_order() -> None:
    assert order(0) == order(0) != order(1)
    assert order(0) != order(0, seed="1")
    assert [sorted(one) for one in batches(order(0), 4)] != [sorted(one) for one in batches(order(1), 4)]


@pytest.mark.parametrize("count", [4000, 3998])
def test_two_ranks_take_the_steps_of_one(count: int) -> None:
    """Two ranks of 4 against one of 8: each step has the same rows."""
    whole = batches(order(1, batch_size=8, count=count), 8)
    shares = [batches(order(1, batch_size=4, ranks=2, rank=rank, count=count), 4) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(whole)
    for one, *parts in zip(whole, *shares, strict=True):
        assert sorted(one) == sorted(at for part in parts for at in part)
    # The ranks' batches of a step are of like length, so that none waits.
    longest = [[max(LENGTHS[at] for at in part) for part in parts] for parts in zip(*shares, strict=True)]
    assert sum(abs(one - two) for one, two in longest) < 0.05 * sum(map(sum, longest))


def test_rows_that_cannot_be_shared_evenly_come_twice() -> None:
    shares = [order(0, batch_size=2, ranks=3, rank=rank, count=100) for rank in range(3)]
    assert [len(share) for share in shares] == [34, 34, 34]
    count = Counter(at for share in shares for at in share)
    assert set(count) == set(range(100))
    assert sorted(count.values())[-3:] == [1, 2, 2]


def test_an_iterator_goes_on_where_it_was() -> None:
    sampler = LengthGroupedSampler(LENGTHS[:50], 4, "0")
    sampler.set_epoch(2)
    whole, begun = list(sampler), iter(sampler)
    first = [next(begun) for _ in range(17)]
    other = iter(LengthGroupedSampler(LENGTHS[:50], 4, "0"))
    other.load_state_dict(begun.state_dict())
    assert first + list(other) == whole
    assert {epoch for epoch, _ in whole} == {2}


def test_scoring_has_every_row_once_in_one_order_with_less_padding() -> None:
    positions = scoring_order(LENGTHS[:3998], 4)
    assert sorted(positions) == list(range(3998))
    assert padding(positions, 4) < 0.01
    assert padding(list(range(3998)), 4) > 0.35
    assert positions == scoring_order(LENGTHS[:3998], 4)


def test_the_first_steps_of_scoring_stand_for_all() -> None:
    first = scoring_order(LENGTHS, 4)[:400]
    assert sum(LENGTHS[at] for at in first) / 400 == pytest.approx(sum(LENGTHS) / 4000, rel=0.1)


def test_fewer_examples_than_a_step_are_scored_too() -> None:
    assert sorted(scoring_order([3, 1, 2], 8)) == [0, 1, 2]
    assert scoring_order([], 8) == []


def test_two_ranks_score_the_steps_of_one() -> None:
    """Lightning gives each rank its share of the order by this sampler of its own."""
    whole = scoring_order(LENGTHS, 8)
    shares = [
        batches(list(DistributedSamplerWrapper(whole, num_replicas=2, rank=rank, shuffle=False)), 4) for rank in (0, 1)
    ]
    for one, *parts in zip(batches(whole, 8), *shares, strict=True):
        assert sorted(one) == sorted(at for part in parts for at in part)
