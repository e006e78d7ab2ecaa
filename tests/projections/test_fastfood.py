"""The structured dense map: its constants for ever, its exact transpose, and how far it is isometric."""

from __future__ import annotations

import hashlib
from statistics import NormalDist

import pytest
import torch
from projection_maps import dense_map
from torch import Tensor

from gpart.errors import GPartError
from gpart.projections import fastfood as module
from gpart.projections.fastfood import LEVELS, Fastfood, Positions, gaussian_table, hadamard

SHAPES = [(1, 1), (5, 1), (8, 8), (50, 7), (64, 16), (65, 16), (100, 33), (40, 40)]


def matrix(made: Fastfood, dtype: torch.dtype = torch.float64) -> Tensor:
    constants = made.constants(dtype=dtype)
    return torch.stack([made.apply(row, constants) for row in torch.eye(made.d, dtype=dtype)], 1)


def digest(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize(("size", "d"), SHAPES)
def test_it_is_the_matrix_of_the_formula(size, d, seed):
    wanted = torch.from_numpy(dense_map("fastfood", size, d, seed))
    torch.testing.assert_close(matrix(Fastfood(size, d, seed)), wanted, rtol=1e-12, atol=1e-14)


def test_the_constants_of_the_scheme_never_change():
    signs, order, factors = Fastfood(10_000, 300, 42).constants()
    assert signs.shape == order.shape == factors.shape == (20, 512)
    assert signs.unique().tolist() == [-1, 1]
    assert order.sort(1).values.equal(torch.arange(512, dtype=torch.int32).expand(20, -1))
    assert [digest(signs), digest(order), digest(factors)] == [
        "335d657ebb79c9f6",
        "9ea044a7e6f3b4c8",
        "f0152f252b1304ac",
    ]
    assert digest(gaussian_table()) == "3a59d87ddb1b4169"


def test_the_update_never_changes():
    made = Fastfood(10_000, 300, 42)
    update = made.apply((torch.arange(300) % 7 - 3) / 8, made.constants())
    assert digest(update) == "cbf8cc1827401cf0"


def test_constants_made_in_parts_are_the_same(monkeypatch):
    made = Fastfood(1000, 20, 3)
    whole = made.constants()
    monkeypatch.setattr(module, "_AT_ONCE", 64)
    assert all(one.equal(other) for one, other in zip(made.constants(), whole, strict=True))


def test_the_table_is_normal_and_no_entry_is_near_the_middle_between_two():
    """Another platform's logarithm, which may differ in its last bits, gives the same table."""
    exact = [NormalDist().inv_cdf((k + 0.5) / LEVELS) * LEVELS for k in range(LEVELS)]
    table = gaussian_table()
    assert table.tolist() == [round(value) for value in exact]
    assert min(abs(value % 1 - 0.5) for value in exact) > 1e-7  # double precision is 1e-11 of this unit
    assert abs(float((table.double() / LEVELS).square().mean()) - 1) < 1e-4
    assert int(table.sum()) == 0


def test_gaussians_signs_and_orders_are_independent_looks_of_chance():
    signs, order, factors = Fastfood(1 << 18, 1 << 8, 1).constants(dtype=torch.float64)
    gaussians = factors * (1 << 18) ** 0.5 * 16  # norms are about 16
    assert abs(float(signs.double().mean())) < 0.01
    assert abs(float(gaussians.mean())) < 0.01
    assert abs(float(gaussians.std()) - 1) < 0.01
    assert abs(float((gaussians * signs).mean())) < 0.01
    rows = torch.arange(1 << 8).expand_as(order).double()
    assert abs(float(torch.corrcoef(torch.stack([rows.flatten(), order.double().flatten()]))[0, 1])) < 0.01
    assert float((order[1:] == order[:-1]).double().mean()) < 0.01


@pytest.mark.parametrize("width", [1, 2, 8, 64])
def test_hadamard_is_symmetric_and_its_own_inverse_but_for_the_width(width):
    h = hadamard(torch.eye(width, dtype=torch.float64), width)
    assert h.equal(h.T)
    assert (h @ h).equal(width * torch.eye(width, dtype=torch.float64))
    if width > 2:
        assert h[3].tolist() == [(-1.0) ** (3 & j).bit_count() for j in range(width)]


@pytest.mark.parametrize(("size", "d"), SHAPES)
def test_the_gradient_is_the_exact_transpose(size, d):
    made = Fastfood(size, d, 5)
    constants = made.constants(dtype=torch.float64)
    x, y = torch.randn(d, dtype=torch.float64, requires_grad=True), torch.randn(size, dtype=torch.float64)
    forward = made.apply(x, constants)
    (backward,) = torch.autograd.grad(forward, x, y)
    torch.testing.assert_close(forward @ y, x @ backward, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(backward, matrix(made).T @ y, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda t: made.apply(t, constants), x)
    assert torch.autograd.gradgradcheck(lambda t: made.apply(t, constants), x)


@pytest.mark.parametrize(("size", "d"), [(64, 16), (4096, 64), (4096, 50)])
def test_columns_have_norm_one_where_the_blocks_are_whole(size, d):
    p = matrix(Fastfood(size, d, 7))
    torch.testing.assert_close((p.T @ p).diagonal(), torch.ones(d, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def spread(size: int, d: int, seeds: int) -> Tensor:
    """‖P·theta‖² / ‖theta‖² for one theta a seed."""
    ratios = []
    for seed in range(seeds):
        theta = torch.randn(d, dtype=torch.float64)
        made = Fastfood(size, d, seed)
        ratios.append(made.apply(theta, made.constants(dtype=torch.float64)).square().sum() / theta.square().sum())
    return torch.stack(ratios)


@pytest.mark.parametrize(("size", "d"), [(4096, 64), (4096, 50), (4100, 33)])
def test_it_is_isometric_in_the_mean_and_not_for_one_seed(size, d):
    ratios = spread(size, d, 150)
    deviation = float(ratios.std()) * size**0.5
    assert 1.5 < deviation < 2.6, "the docstring says about 2 / sqrt(D)"
    assert abs(float(ratios.mean()) - 1) < 4 * deviation / size**0.5 / 150**0.5
    assert float((ratios - 1).abs().max()) > 1e-3


def test_float32_is_float64_rounded():
    made = Fastfood(5000, 100, 0)
    theta = torch.randn(100)
    narrow = made.apply(theta, made.constants())
    wide = made.apply(theta.double(), made.constants(dtype=torch.float64))
    assert narrow.dtype == torch.float32
    assert float((narrow - wide).norm() / wide.norm()) < 1e-6


def test_what_it_cannot_do_is_refused_with_the_number():
    with pytest.raises(GPartError, match="d=9"):
        Fastfood(8, 9, 0)
    with pytest.raises(GPartError, match=f"at most 2\\^30 = {2**30} weights, got D={2**30 + 1}"):
        Fastfood(2**30 + 1, 9, 0)


def test_positions_are_groups_of_one():
    made = Positions(10)
    assert made.groups(2, 5).tolist() == [2, 3, 4]
    assert made.groups(dtype=torch.int64).dtype == torch.int64
    assert made.sizes().tolist() == [1] * 10
    assert made.d == 10
    with pytest.raises(GPartError, match="positions 3 to 11"):
        made.groups(3, 11)
