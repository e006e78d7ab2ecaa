"""The distances along a run and what a decay step does."""

from __future__ import annotations

import pytest
import torch

from gpart.errors import GPartError
from gpart.partition import Partition
from gpart.studies.isometry.maps import Grouped
from gpart.studies.isometry.measuring import Settings, decay_degree, measure, stretch
from gpart.studies.isometry.products import LoRA, Rank
from gpart.studies.isometry.report import sheets
from gpart.studies.isometry.spectrum import spectrum
from gpart.studies.isometry.subjects import Point, Subject
from gpart.studies.isometry.vector import Trainable

PARTITION = Partition(size=1000, d=40, seed=1)
LORA = LoRA([Rank((6, 4), 2, 3.0)])


def subject(name: str, made: Grouped | LoRA, *vectors: torch.Tensor) -> Subject:
    points = tuple(Point(5 * place, vector.double()) for place, vector in enumerate(vectors))
    return Subject(name, Trainable(name, ("theta",), made), points, {"lr": 0.1})


def test_gpart_moves_the_weights_as_far_as_theta() -> None:
    torch.manual_seed(0)
    row = measure(
        subject("gpart", Grouped(PARTITION, True), torch.zeros(40), torch.randn(40)), Settings(), lambda *_: None
    )
    assert [end.step for end in row.ends] == [0, 5]
    assert row.path[0].ratio is None
    assert row.path[1].ratio == pytest.approx(1)
    assert row.path[1].base == row.path[1].weights
    assert (row.degree, row.pull) == (pytest.approx(1), pytest.approx(1))
    assert row.ends[0].stretch == pytest.approx(1)


def test_a_linear_map_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        Grouped, "spectrum", lambda self, vector: asked.append(1) or spectrum([(1.0, 40)], "closed form")
    )
    row = measure(subject("x", Grouped(PARTITION, True), torch.zeros(40), torch.ones(40)), Settings(), lambda *_: None)
    assert len(asked) == 1
    assert [end.step for end in row.ends] == [0, 5]


def test_the_non_isometric_one_is_one_factor_away() -> None:
    torch.manual_seed(0)
    made = Grouped(PARTITION, False)  # 25 weights in each of 40 groups
    row = measure(subject("x", made, torch.ones(40), 2 * torch.ones(40)), Settings(), lambda *_: None)
    assert row.path[1].ratio == pytest.approx(5)
    assert row.ends[1].spectrum.condition == 1
    assert row.path[0].base == pytest.approx(5 * 40**0.5)
    assert row.pull == pytest.approx(1 / 5)
    table = sheets([row])[2]
    assert table.rows[0] == ["x", "-", "6.325", "31.62", "5.000", "5.000", "63.25"]


@pytest.mark.parametrize("start", [torch.zeros(20), torch.arange(20.0)])
def test_decay_acts_twice_on_a_product(start: torch.Tensor) -> None:
    """Also where there is no update yet; and on a linear map once, whatever its scale."""
    assert decay_degree(LORA, start.double(), 0) == pytest.approx(2)
    assert decay_degree(Grouped(PARTITION, False), start.repeat(2).double(), 0, 0.5, 0.5) == pytest.approx(1)


def test_decay_of_a_product_points_straight_back() -> None:
    vector = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(LORA.delta(0.9 * vector), 0.81 * LORA.delta(vector))


def test_stretch_is_measured_at_the_point() -> None:
    vector = torch.arange(20.0).double()
    found = LORA.spectrum(vector)
    assert stretch(LORA, vector, 0) == pytest.approx(found.rms, rel=0.5)
    assert stretch(LORA, 10 * vector, 0) == pytest.approx(10 * stretch(LORA, vector, 0))


def test_settings_are_checked() -> None:
    with pytest.raises(GPartError, match="steps must be 2 or more, got 1"):
        Settings(steps=1)
