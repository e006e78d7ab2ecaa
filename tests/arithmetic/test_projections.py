"""Arithmetic on adapters of every projection: the numbers are those of the weight updates."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from gpart import GPartAdapter, GPartConfig, attach
from gpart.arithmetic import combine, compare, cosine, distance, norm, norm_by_weight, project
from gpart.arithmetic.positions import groups_of
from gpart.arithmetic.stored import as_stored
from gpart.config import PROJECTIONS
from gpart.errors import GPartError

GROUPED = [name for name in PROJECTIONS if name != "fastfood"]


def adapter(projection: str, value: int = 0, **settings: object) -> GPartAdapter:
    torch.manual_seed(0)
    made = attach(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)), GPartConfig(**{
        "d": 60, "target_modules": ["0", "1"], "bias": "all", "projection": projection, "seed": 3, **settings
    }))  # fmt: skip
    with torch.no_grad():
        made.theta.copy_(torch.randn(60, generator=torch.Generator().manual_seed(value)))
    return made


def update(of: GPartAdapter) -> Tensor:
    with torch.no_grad():
        return torch.cat([of.delta(weight.name).flatten() for weight in of.plan.weights]).double()


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_norms_are_those_of_the_update(projection: str) -> None:
    mine, other = adapter(projection), adapter(projection, 1)
    a, b = update(mine), update(other)
    assert norm(mine) == pytest.approx(float(a.norm()), rel=1e-6)
    by_weight = norm_by_weight(mine)
    for weight in mine.plan.weights:
        assert by_weight[weight.name] == pytest.approx(float(mine.delta(weight.name).norm()), rel=1e-6)
    assert distance(mine, other) == pytest.approx(float((a - b).norm()), rel=1e-6)
    assert cosine(mine, other) == pytest.approx(float(a.dot(b) / a.norm() / b.norm()), abs=1e-6)
    assert compare(mine, other).whole.distance == pytest.approx(float((a - b).norm()), rel=1e-6)
    third = adapter("partition", 2)
    assert distance(mine, third) == pytest.approx(float((a - update(third)).norm()), rel=1e-6)
    both = combine({mine: 0.5, other: -1.0})
    assert norm(both) == pytest.approx(float((0.5 * a - b).norm()), rel=1e-6)


@pytest.mark.parametrize("projection", GROUPED)
def test_what_is_projected_is_the_nearest(projection: str) -> None:
    source, target = adapter("fastfood"), adapter(projection)
    made = project(source, target)
    u = update(source)
    groups = groups_of(as_stored(target).layout).groups().long()
    counts = groups.bincount(minlength=60).clamp(min=1)
    means = torch.zeros(60, dtype=torch.float64).index_add(0, groups, u) / counts
    assert made.kept == pytest.approx(float(means[groups].norm()), rel=1e-5)
    assert made.lost == pytest.approx(float((u - means[groups]).norm()), rel=1e-5)


def test_layouts_of_two_maps_differ_and_a_dense_one_takes_no_projection() -> None:
    layouts = [as_stored(adapter(projection)).layout for projection in PROJECTIONS]
    assert len({layout.scheme for layout in layouts}) == len(PROJECTIONS)
    assert "scheme is gpart-v1 and gpart-hash-v1" in layouts[0].differences(layouts[1])
    with pytest.raises(GPartError, match="'gpart-fastfood-v1' has no groups"):
        project(adapter("hash"), adapter("fastfood"))
    with pytest.raises(GPartError, match="no scheme 'gpart-v9'; this version knows 'gpart-v1', "):
        groups_of(dataclasses.replace(layouts[0], scheme="gpart-v9"))
