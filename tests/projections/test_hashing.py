"""Groups by hashing: the scheme's integers for ever, and what their sizes do to the map."""

from __future__ import annotations

import hashlib
import pickle

import pytest
import torch
from projection_maps import dense_map, groups, mixed, splitmix

from gpart.errors import GPartError
from gpart.projections.hashing import HashedGroups, authors_stateless, hashed


def digest(found: torch.Tensor) -> str:
    return hashlib.sha256(found.numpy().astype("<i4").tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**63, 2**64 - 1])
@pytest.mark.parametrize(("projection", "made"), [("hash", hashed), ("authors-stateless", authors_stateless)])
def test_groups_are_those_of_the_formula(projection, made, seed):
    for size, d in ((1, 1), (10, 10), (300, 7), (300, 128)):
        assert made(size, d, seed).groups().tolist() == groups(projection, size, d, seed).tolist()


@pytest.mark.parametrize(("size", "d", "seed", "sha"), [
    (10, 3, 0, "9918fdd612e401e3"), (1000, 7, 42, "ce998bfcda530f40"), (1_769_472, 4608, 0, "c246ebe4a9420ae9"), (300_000, 100_000, 2**64 - 1, "a9f4b21e4bc981ce"),
])  # fmt: skip
def test_the_groups_of_the_scheme_never_change(size, d, seed, sha):
    assert digest(hashed(size, d, seed).groups()) == sha


@pytest.mark.parametrize("made", [hashed, authors_stateless])
def test_any_position_is_computed_alone_and_far_ones_too(made):
    whole = made(1 << 62, 2**31 - 1, 5)
    start = (1 << 62) - 3
    state = whole.origin + whole.step * start
    assert whole.groups(start).tolist() == [mixed((state + i * whole.step) % 2**64) % (2**31 - 1) for i in range(3)]
    few = made(600_000, 1000, 5)  # more than two chunks
    assert few.groups()[262_140:262_150].equal(few.groups(262_140, 262_150))
    assert few.groups(7, 7).shape == (0,)


def test_values_do_not_depend_on_the_dtype_of_the_result():
    made = hashed(50_000, 1 << 15, 1)
    assert made.dtype == torch.int16
    assert hashed(50_000, (1 << 15) + 1, 1).dtype == torch.int32
    assert made.groups(dtype=torch.int16).int().equal(made.groups())
    assert made.groups(device="meta").is_meta


def test_seeds_of_the_hash_are_no_shifts_of_each_other_as_the_authors_are():
    a, b = (authors_stateless(1000, 100, seed).groups() for seed in (8, 9))
    assert a[1:].equal(b[:-1])
    a, b = (hashed(1000, 100, seed).groups() for seed in (8, 9))
    for shift in range(-5, 6):
        same = (a[5:-5] == b[5 + shift : 995 + shift]).float().mean()
        assert same < 0.05


def test_sizes_are_counted_and_spread_as_chance_does():
    made = hashed(1_000_000, 1000, 3)
    sizes = made.sizes()
    assert sizes.dtype == torch.int64
    assert int(sizes.sum()) == 1_000_000
    assert sizes.equal(torch.bincount(made.groups(), minlength=1000))
    # Multinomial: variance D/d (1 - 1/d), whose own estimate from 1000 groups has a deviation of 4.5 %.
    assert 0.8 < float(sizes.double().var()) / 999 < 1.2


@pytest.mark.parametrize("projection", ["hash", "authors-stateless", "authors-materialized"])
def test_the_map_is_isometric_on_the_groups_that_are_not_empty(projection):
    p = torch.from_numpy(dense_map(projection, 40, 30, 1))
    sizes = torch.from_numpy(groups(projection, 40, 30, 1)).long().bincount(minlength=30)
    assert (sizes == 0).any()
    torch.testing.assert_close(p.T @ p, torch.diag((sizes > 0).double()))


def test_a_number_outside_its_range_is_refused_with_it():
    for made in (hashed, authors_stateless):
        for size, d, seed, words in ((0, 1, 0, "size"), (4, 5, 0, "d=5"), (4, 0, 0, "d=0"), (4, 2, -1, "got -1"),
                                     (4, 2, 2**64, str(2**64)), (2**32, 2**31, 0, "below 2\\^31")):  # fmt: skip
            with pytest.raises(GPartError, match=words):
                made(size, d, seed)
    with pytest.raises(GPartError, match="positions 3 to 9 are not within 0 to 8"):
        hashed(8, 2, 0).groups(3, 9)


def test_groups_are_values():
    made = hashed(10, 3, 2)
    assert made == hashed(10, 3, 2) == pickle.loads(pickle.dumps(made))
    assert made != hashed(10, 3, 3)
    assert isinstance(made, HashedGroups)
    assert made.origin % 2**64 == (splitmix(2, 0) + 0x9E3779B97F4A7C15) % 2**64
