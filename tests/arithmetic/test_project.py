"""An update in another layout: the nearest one, with what is lost at a right angle to it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from many_layers import adapted, deltas, many
from torch import Tensor

from gpart import GPartConfig, load_adapter
from gpart.arithmetic import Stored, distance, measures, norm, project
from gpart.errors import GPartError

BASE: dict[str, Any] = {"d": 11, "seed": 5, "target_modules": ["qkv", "square", "turned"]}

ONTO: dict[str, dict[str, Any]] = {
    "seed": {"seed": 6},
    "d": {"d": 40},
    "one number": {"d": 1},
    "fewer targets": {"target_modules": ["qkv"]},
    "other targets": {"target_modules": ["square", "picture"]},
    "slices": {"slices": {"turned": [[0, 4], [8, 12]]}, "bias": "all"},
    "not isometric": {"isometric": False, "seed": 6},
}


def columns(adapter: Any) -> tuple[Tensor, dict[str, slice]]:
    """The whole P of a live adapter, (all entries of its model's adapted weights, d), column by column, in float64."""
    names = {}
    rows = 0
    for weight in adapter.plan.weights:
        count = math.prod(weight.shape)
        names[weight.name] = slice(rows, rows + count)
        rows += count
    made = torch.zeros(rows, adapter.config.d, dtype=torch.float64)
    for column in range(adapter.config.d):
        with torch.no_grad():
            adapter.theta.zero_()
            adapter.theta[column] = 1.0
        for name, delta in deltas(adapter).items():
            made[names[name], column] = delta.reshape(-1)
    return made, names


@pytest.mark.parametrize("change", ONTO.values(), ids=ONTO)
@pytest.mark.parametrize("isometric", [True, False])
def test_it_is_the_nearest_update(change: dict[str, Any], isometric: bool) -> None:
    source = adapted(1, **{**BASE, "isometric": isometric})
    target = adapted(2, **{**BASE, **change})
    made = project(source, target)
    p, names = columns(target)
    update = torch.zeros(p.shape[0], dtype=torch.float64)
    outside = 0.0
    for name, delta in deltas(source).items():
        if name in names:
            update[names[name]] = delta.reshape(-1)
        else:
            outside += float(delta.square().sum())
    nearest = torch.linalg.lstsq(p, update).solution
    assert torch.allclose(made.adapter.theta.double(), nearest, atol=1e-6)
    lost = math.sqrt(float((update - p @ nearest).square().sum()) + outside)
    assert made.lost == pytest.approx(lost, rel=1e-6, abs=1e-6)
    assert made.norm == pytest.approx(norm(source), rel=1e-12)
    assert made.kept**2 + made.lost**2 == pytest.approx(made.norm**2, rel=1e-6)
    assert made.relative == made.lost / made.norm
    assert made.lost == pytest.approx(distance(source, made.adapter), rel=1e-9)


def test_onto_its_own_layout_nothing_changes() -> None:
    source = Stored.of(adapted(**BASE))
    made = project(source, source)
    assert torch.allclose(made.adapter.theta, source.theta, rtol=1e-7)
    assert made.lost < 1e-6
    assert made.kept == pytest.approx(made.norm, rel=1e-7)


def test_twice_is_once() -> None:
    once = project(adapted(**BASE), GPartConfig(**{**BASE, "seed": 9}))
    again = project(once.adapter, once.adapter)
    assert torch.allclose(again.adapter.theta, once.adapter.theta, rtol=1e-6)


def test_d_of_the_whole_loses_nothing_and_d_of_one_keeps_the_mean() -> None:
    source = adapted(**BASE)
    whole = project(source, GPartConfig(**{**BASE, "d": source.size}))
    assert whole.lost < 1e-6
    one = project(source, GPartConfig(**{**BASE, "d": 1}))
    mean = sum(float(delta.sum()) for delta in deltas(source).values()) / source.size
    assert float(one.adapter.theta) / math.sqrt(source.size) == pytest.approx(mean, rel=1e-6)


def test_targets_that_share_nothing_lose_all() -> None:
    made = project(adapted(**BASE), adapted(d=5, target_modules=["picture"]))
    assert made.adapter.theta.abs().max() == 0
    assert made.kept == 0
    assert made.relative == pytest.approx(1.0)
    zero = adapted(**BASE)
    zero.theta.data.zero_()
    assert project(zero, GPartConfig(**{**BASE, "seed": 9})).relative == 0.0


def test_the_result_loads_where_it_was_projected_to(tmp_path: Path) -> None:
    source = adapted(1, **BASE, modules_to_save=["head"], dropout=0.1)
    with torch.no_grad():
        source.model.head.weight.add_(1.0)
    target = adapted(2, d=9, target_modules=["square", "picture"], modules_to_save=["head"])
    target.save(tmp_path / "target")
    from gpart.arithmetic import read

    for onto in (target, read(tmp_path / "target"), target.manifest()):
        made = project(source, onto).adapter
        made.save(tmp_path / "made")
        model = many()
        loaded = load_adapter(model, tmp_path / "made")
        assert loaded.config == target.config
        assert torch.equal(loaded.theta, made.theta)
        assert torch.equal(model.head.weight, source.model.head.weight)  # the source's, trained


def test_in_chunks_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = adapted(1, **BASE), adapted(2, **{**BASE, "d": 17, "slices": {"turned": [[0, 4], [8, 12]]}})
    before = project(source, target)
    monkeypatch.setattr(measures, "CHUNK", 7)
    after = project(source, target)
    assert torch.allclose(after.adapter.theta, before.adapter.theta, rtol=1e-6, atol=1e-7)
    assert after.lost == pytest.approx(before.lost, rel=1e-9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_modules": ["qkv"]}, r"target_modules is \['qkv', 'square', 'turned'\] and \['qkv'\]"),
        ({"bias": "all"}, "bias is 'none' and 'all'"),
        ({"modules_to_save": ["head"]}, r"modules_to_save is None and \['head'\]"),
        ({"slices": {"qkv": [[0, 3]]}}, r"slices is None and \{'qkv': \[\[0, 3\]\]\}"),
        ({"d": 163}, "d=163 is more than the 162 weights"),
    ],
)
def test_a_config_with_other_targets_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(GPartError, match=said):
        project(adapted(**BASE), GPartConfig(**{**BASE, **change}))


def test_other_bases_and_other_saved_modules_are_refused() -> None:
    source, other = adapted(**BASE), adapted(base_seed=1, **{**BASE, "seed": 9})
    for onto in (other, other.manifest()):
        with pytest.raises(GPartError, match="different bases: fingerprints"):
            project(source, onto)
        assert project(source, onto, check_base=False).adapter.manifest.base == source.base_fingerprint()
    with pytest.raises(GPartError, match=r"has modules_to_save=None, and the layout to project onto \['head'\]"):
        project(source, adapted(**BASE, modules_to_save=["head"]))
