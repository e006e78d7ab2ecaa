"""The partition is a fixed function of integers: golden values, an independent implementation, and its properties."""

from __future__ import annotations

import hashlib

import pytest
import torch

from gpart import Partition
from gpart.partition import SCHEME

WHOLE = [
    (10, 3, 0, "1 2 2 1 1 0 0 2 0 0", "306aac8dce3cde90"),
    (10, 10, 7, "4 7 5 8 3 2 6 0 1 9", "8047a7074a9f7126"),
    (1000, 7, 42, "3 2 5 0 3 6 6 5 0 1", "351188b81052b47b"),
    (1_769_472, 4608, 0, "914 248 3801 2776 437 670 2822 320 1503 1646", "f2d1fda7445af0ea"),
    (14_155_776, 23_040, 0, "18013 6301 12285 866 7395 262 20338 8384 1745 8226", "5db97a161c612115"),
]
LLAMA, BEYOND = (1_342_177_280, 524_288, 0), (2**40 + 3, 10**6, 1)
SINGLE = [
    (LLAMA, 0, 496_720),
    (LLAMA, 1, 489_963),
    (LLAMA, 2, 221_765),
    (LLAMA, 10**9, 42_267),
    (LLAMA, 1_342_177_279, 12_889),
    (BEYOND, 0, 687_153),
    (BEYOND, 1, 271_979),
    (BEYOND, 2**33, 522_403),
    (BEYOND, 2**40 + 2, 842_827),
]


def group_by_hand(size, d, seed, i):
    """One position in Python's own unbounded integers."""
    z, x = [], seed
    for _ in range(12):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        y = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        y = (y ^ y >> 27) * 0x94D049BB133111EB % 2**64
        z.append(y ^ y >> 31)
    k, x = max(8, (size - 1).bit_length()), i
    while True:
        for r in range(6):
            x = (x * (z[2 * r] | 1) + z[2 * r + 1]) % 2**k
            x ^= x >> (k // 3 if r % 2 else k // 2)
        if x < size:
            return x % d


def test_the_scheme_has_the_name_that_files_carry():
    assert SCHEME == "gpart-v1"


@pytest.mark.parametrize(("size", "d", "seed", "first", "digest"), WHOLE)
def test_golden_whole_partition(size, d, seed, first, digest):
    groups = Partition(size, d, seed).groups()
    assert groups.dtype == torch.int32
    assert " ".join(map(str, groups[:10].tolist())) == first
    assert hashlib.sha256(groups.numpy().astype("<i4").tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(("partition", "position", "group"), SINGLE)
def test_golden_single_position(partition, position, group):
    assert Partition(*partition).groups(position, position + 1).tolist() == [group]


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize(
    "size",
    # Both sides of every change of arithmetic (k = 8 to 9, int32 to int64 at 2^31, which int32 cannot hold), the largest.
    [1, 2, 128, 129, 256, 257, 2**30, 2**31 - 1, 2**31, 2**31 + 1, 2**32 + 1, 2**62 - 1, 2**62],
)
def test_int32_and_int64_arithmetic_give_what_unbounded_integers_give(size, seed):
    d = min(size, 2**31 - 1)
    partition = Partition(size, d, seed)
    starts = {0, size // 3, size // 2, max(0, size - 20)}
    for start in starts:
        stop = min(start + 20, size)
        assert partition.groups(start, stop).tolist() == [group_by_hand(size, d, seed, i) for i in range(start, stop)]


@pytest.mark.parametrize(("size", "d", "seed"), [(300_001, 17, 3), (2**19, 1000, 2**64 - 1)])
def test_whole_partition_equals_an_independent_implementation(size, d, seed, reference_groups):
    assert (Partition(size, d, seed).groups().numpy() == reference_groups(size, d, seed)).all()


def test_every_small_size_is_a_permutation_with_balanced_groups():
    """For every D from 1 to 300: d = D gives every number once, and other d balanced groups of the stated sizes."""
    for size in range(1, 301):
        assert sorted(Partition(size, size, seed=size).groups().tolist()) == list(range(size))
        for d in {1, 2, size // 2, size - 1} & set(range(1, size + 1)):
            partition = Partition(size, d, seed=d)
            expected = [size // d + (j < size % d) for j in range(d)]
            assert partition.sizes().tolist() == expected
            assert partition.groups().bincount(minlength=d).tolist() == expected


def test_sizes_of_a_large_partition_are_counted_ones():
    partition = Partition(1_000_003, 4608, 5)
    sizes = partition.sizes()
    assert sizes.dtype == torch.int64
    assert sizes.equal(partition.groups().bincount(minlength=4608))
    assert sizes.max() - sizes.min() == 1


@pytest.mark.parametrize(
    ("start", "stop"),
    # The processor computes 2^18 positions at a time: across its borders, at them, one position, none, all.
    [(0, 600_000), (262_100, 262_200), (262_144, 524_288), (262_143, 262_145), (599_999, 600_000), (7, 7)],
)
def test_any_range_is_that_part_of_the_whole(start, stop):
    partition = Partition(600_000, 1234, 9)
    assert partition.groups(start, stop).equal(partition.groups()[start:stop])
    assert partition.groups(start).equal(partition.groups()[start:])


@pytest.mark.parametrize("seed", [1, 2, 2**63])
def test_another_seed_gives_an_unrelated_partition(seed):
    """Two partitions agree in about one position of d, as independent ones do."""
    same = Partition(100_000, 100, 0).groups() == Partition(100_000, 100, seed).groups()
    assert 800 < int(same.sum()) < 1200


def test_neighbours_fall_into_groups_as_independent_draws_do():
    """Pairs (i, i + lag) share a group once in d; three rounds of mixing failed this, six pass."""
    groups = Partition(768 * 768, 768, 0).groups()
    for lag in (1, 2, 3, 64, 768):
        together = int((groups[lag:] == groups[:-lag]).sum())
        assert abs(together - len(groups) / 768) < 6 * (len(groups) / 768) ** 0.5, lag


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 0, "d": 1}, ["size", "0"]),
        ({"size": -5, "d": 1}, ["size", "-5"]),
        ({"size": 2**62 + 1, "d": 1}, ["2^62", str(2**62 + 1)]),
        ({"size": 10, "d": 0}, ["d=0", "10"]),
        ({"size": 10, "d": 11}, ["d=11", "10"]),
        ({"size": 2**40, "d": 2**31}, ["int32", str(2**31)]),
        ({"size": 10, "d": 1, "seed": -1}, ["seed", "-1"]),
        ({"size": 10, "d": 1, "seed": 2**64}, ["seed", str(2**64)]),
    ],
)
def test_bad_numbers_are_refused_with_both_values(arguments, words):
    with pytest.raises(ValueError) as caught:
        Partition(**arguments)
    for word in words:
        assert word in str(caught.value)


def test_the_largest_numbers_are_taken():
    assert Partition(2**62, 2**31 - 1, 2**64 - 1).groups(2**62 - 1).numel() == 1


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (0, 11), (11, 11), (11, None)])
def test_a_range_outside_the_positions_is_refused(start, stop):
    with pytest.raises(ValueError, match=rf"{start} to {10 if stop is None else stop} .* 0 to 10"):
        Partition(10, 3).groups(start, stop)
