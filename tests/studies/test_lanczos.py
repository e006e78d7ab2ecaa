"""Lanczos against matrices whose eigenvalues are known."""

from __future__ import annotations

import pytest
import torch

from gpart.studies.lanczos import lanczos, random_vector


def test_it_finds_the_eigenvalues_with_their_bounds() -> None:
    raw = torch.randn(30, 30, dtype=torch.float64)
    matrix = raw @ raw.T - 10 * torch.eye(30, dtype=torch.float64)
    true, first = torch.linalg.eigvalsh(matrix), random_vector(matrix[0], seed=0)
    some = lanczos(lambda v: matrix @ v, first, steps=12)
    assert len(some.values) == 12
    assert some.values[-1].item() == pytest.approx(true[-1].item(), rel=1e-3)
    nearest = (some.values[:, None] - true).abs().min(1).values
    assert (nearest <= some.bounds + 1e-9).all()
    assert some.values[-1] <= true[-1] + 1e-9
    assert some.parts.sum().item() == pytest.approx(1)
    torch.testing.assert_close(lanczos(lambda v: matrix @ v, first, steps=50).values, true)


def test_no_bound_is_below_what_the_dtype_can_hold() -> None:
    torch.manual_seed(0)
    raw = torch.randn(400, 400)
    matrix = raw @ raw.T / 400
    matrix[0, 0] += 50
    found = lanczos(lambda v: matrix @ v, random_vector(matrix[0], seed=0), steps=20)
    error = (found.values[-1] - torch.linalg.eigvalsh(matrix.double())[-1]).abs()
    assert 0 < error <= found.bounds[-1] <= 1e-4


def test_it_ends_where_the_space_is_exhausted() -> None:
    matrix, told = torch.diag(torch.tensor([4.0, 4.0, 0.0, 0.0, 0.0])), []
    found = lanczos(lambda v: matrix @ v, torch.ones(5), 5, told.append)
    assert found.values.tolist() == pytest.approx([0.0, 4.0], abs=1e-5)
    assert found.parts.tolist() == pytest.approx([0.6, 0.4], abs=1e-5)
    assert told == [1, 2]
    assert lanczos(torch.zeros_like, torch.ones(5), steps=3).values.tolist() == [0.0]


def test_it_stops_where_a_product_is_not_finite() -> None:
    matrix, done = torch.diag(torch.arange(5.0)), []

    def product(vector: torch.Tensor) -> torch.Tensor:
        return matrix @ vector * (1 if len(done) < 2 else torch.nan)

    found = lanczos(product, torch.ones(5), 5, done.append)
    assert torch.equal(found.values, lanczos(lambda v: matrix @ v, torch.ones(5), 2).values)
    none = lanczos(lambda v: v * torch.inf, torch.ones(5), 3)
    assert [len(one) for one in (none.values, none.bounds, none.parts)] == [0, 0, 0]


def test_a_seed_is_a_vector() -> None:
    like = torch.empty(9)
    assert torch.equal(random_vector(like, 1), random_vector(like, 1))
    assert not torch.equal(random_vector(like, 1), random_vector(like, 2))
