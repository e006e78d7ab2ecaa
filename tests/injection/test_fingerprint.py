"""What a base is recognised by, and whether its bits have moved."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from gpart.injection.fingerprint import (
    differing,
    exact_digests,
    fingerprint,
    is_base,
    moved,
    parts,
    sample_of,
    shortened,
)

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


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rows_that_were_added_at_the_end_are_seen_when_they_differ(shape):
    weight = torch.ones(shape)
    before = fingerprint({"w": weight})
    weight[-1].reshape(-1)[-1] += 1
    assert fingerprint({"w": weight}) != before
    weight[-1].reshape(-1)[-1] -= 1
    weight[0].reshape(-1)[0] += 1
    assert fingerprint({"w": weight}) != before


@pytest.mark.parametrize("version", [1, 2])
def test_a_sample_has_the_fingerprint_of_the_whole_in_both_formats(version):
    weights = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    samples = {name: sample_of(name, value) for name, value in weights.items()}
    assert fingerprint(samples, version) == fingerprint(weights, version)
    half = {name: value.half() for name, value in weights.items()}
    assert is_base(samples, fingerprint(half, version), version)
    assert not is_base(samples, fingerprint(half, version), 3 - version)


@pytest.mark.parametrize("count", [3, 400, 401, 1000])
def test_the_parts_name_what_differs_and_stay_short(count):
    weights = {f"layers.{i:04}.weight": torch.full((3,), float(i)) for i in range(count)}
    short = shortened(parts(weights))
    assert len(short) <= 800
    assert differing(weights, short) == []
    assert differing({name: value.half() for name, value in weights.items()}, short) == []
    weights["layers.0002.weight"][0] += 9
    (found,) = differing(weights, short)
    assert "layers.0002.weight" in found or found.startswith("layers.0000.weight to ")
    del weights["layers.0000.weight"]
    assert differing(weights, "") == []


def test_imaginary_parts_are_looked_at_and_files_without_them_are_known() -> None:
    torch.manual_seed(0)
    base: dict[str, Any] = {"a": torch.randn(10, dtype=torch.complex64), "b": torch.randn(3)}
    other = {**base, "a": base["a"].conj()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fingerprint(base) != fingerprint(other)
        assert not is_base(other, fingerprint(base))
    with pytest.warns(UserWarning, match="discards the imaginary part"):  # as it was made before 0.2
        digest = hashlib.blake2b(b"a[10]\n" + _bits(base["a"].to(torch.bfloat16)), digest_size=32).digest()
    digest += hashlib.blake2b(b"b[3]\n" + _bits(base["b"].to(torch.bfloat16)), digest_size=32).digest()
    old = hashlib.sha256(digest).hexdigest()
    samples = {name: sample_of(name, value) for name, value in base.items()}
    assert is_base(base, old)
    assert is_base(samples, old)
    assert not is_base({**base, "a": base["a"] + 1}, old)
    assert fingerprint(samples) == fingerprint(base)


def _bits(value: torch.Tensor) -> bytes:
    return value.view(torch.uint8).numpy().tobytes()


def test_within_a_default_device_and_after_it() -> None:
    weight = torch.linspace(-1, 1, 250 * 80).view(250, 80)  # of a shape that no other test has
    with torch.device("meta"):
        within = fingerprint({"w": weight})
    assert fingerprint({"w": weight}) == within


def test_memory_that_was_looked_at_can_be_given_back() -> None:
    """FSDP2 resizes a parameter's memory, which torch refuses for what numpy has seen."""
    for numbers in (8, 100_000):
        value = torch.ones(numbers)
        fingerprint({"weight": value})
        value.untyped_storage().resize_(0)
