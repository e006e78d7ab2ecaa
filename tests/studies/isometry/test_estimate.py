"""Lanczos and the spectra, against matrices whose singular values are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpart.errors import GPartError
from gpart.studies.isometry import estimate as module
from gpart.studies.isometry.estimate import estimate
from gpart.studies.isometry.maps import Linear
from gpart.studies.isometry.measuring import Local, Moved, Row
from gpart.studies.isometry.report import sheets
from gpart.studies.isometry.spectrum import Spectrum, spectrum


class Matrix(Linear):
    """J with these singular values."""

    def __init__(self, values: Tensor) -> None:
        torch.manual_seed(0)
        d = len(values)
        left, right = (torch.linalg.qr(torch.randn(rows, d, dtype=torch.float64))[0] for rows in (d + 20, d))
        self.matrix = left @ values.double().diag() @ right.T
        self.size = d + 20

    def delta(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector

    def spectrum(self, vector: Tensor) -> None:
        return None


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


def test_a_small_one_is_whole() -> None:
    values = torch.linspace(0, 3, 40)
    found = estimate(Matrix(values), torch.zeros(40).double(), 5, 1, 0, quiet)
    assert found.how == "Gram matrix"
    torch.testing.assert_close(found.values, values.double(), rtol=1e-6, atol=1e-6)


def test_lanczos_gives_the_ends_and_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE", 0)
    values = torch.linspace(1, 3, 300)
    found = estimate(Matrix(values), torch.zeros(300).double(), 40, 6, 0, quiet)
    assert found.how == "Lanczos"
    assert found.length == pytest.approx(300)
    assert 1 - 1e-9 <= found.least < 1.02
    assert 2.98 < found.largest <= 3 + 1e-9
    assert found.rms == pytest.approx(values.square().mean().sqrt().item(), rel=0.03)
    middle = found.quantiles(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(middle, torch.tensor([1.5, 2.0, 2.5]).double(), rtol=0.1, atol=0)
    again = estimate(Matrix(values), torch.zeros(300).double(), 40, 6, 0, quiet)
    assert torch.equal(again.values, found.values)


def test_where_there_are_zeros_the_least_is_no_bound_and_is_told_as_an_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WHOLE", 0)
    values = torch.cat([torch.zeros(60), torch.linspace(1, 2, 540)])
    found = estimate(Matrix(values), torch.zeros(600).double(), 5, 2, 0, quiet)
    assert found.least < 0.9
    assert found.largest <= 2 + 1e-9
    row = Row("a", "a", 600, 620, {}, (Local(0, found, 1.0),), (Moved(0, 0.0, 0.0, 0.0),), 1.0)
    line = sheets([row])[0].rows[0]
    assert [line[3][:2], line[5][:2], line[6][:2]] == ["≈ ", "≥ ", "≈ "]


def test_products_that_are_not_finite_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE", 0)
    with pytest.raises(GPartError, match="products are not finite"):
        estimate(Matrix(torch.full((9,), torch.nan)), torch.zeros(9).double(), 5, 1, 0, quiet)


def test_few_distinct_values_end_it_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE", 0)
    told: list[int] = []
    values = torch.tensor([1.0] * 30 + [2.0] * 10)
    found = estimate(Matrix(values), torch.zeros(40).double(), 20, 1, 0, lambda done, total: told.append(done))
    assert found.values.tolist() == pytest.approx([1, 2])
    assert told == [1, 2]
    assert found.error < 1e-9


def test_zeros_are_counted_apart() -> None:
    found = spectrum([(0.0, 3), (torch.tensor([4.0, 2.0]), 1), (5.0, 0)], "closed form")
    assert (found.zeros, found.least, found.largest, found.condition) == (0.6, 2, 4, 2)
    assert found.rms == pytest.approx((20 / 5) ** 0.5)
    assert found.quantiles(torch.tensor([0.0, 0.6, 0.61, 0.81, 1.0], dtype=torch.float64)).tolist() == [0, 0, 2, 4, 4]
    assert found.to_json()["length"] == 5


def test_nothing_but_zeros() -> None:
    found = Spectrum(torch.zeros(1).double(), torch.ones(1).double(), "closed form")
    assert (found.zeros, found.least, found.condition) == (1, 0, float("inf"))
    assert found.to_json()["condition"] is None
