"""Norms, distances and cosines are those of the weight updates, on one layout and across layouts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from many_layers import adapted, deltas
from torch import Tensor

from gpart.adapter import GPartAdapter
from gpart.arithmetic import (
    Stored,
    compare,
    cosine,
    cosine_by_weight,
    distance,
    distance_by_weight,
    measures,
    norm,
    norm_by_weight,
)
from gpart.errors import GPartError

SAME: dict[str, dict[str, Any]] = {
    "plain": {"d": 11, "target_modules": ["qkv", "square", "turned"]},
    "d = 1": {"d": 1, "target_modules": ["qkv"]},
    "d = D": {"d": 54, "target_modules": ["qkv"]},
    "padding and bias": {"d": 13, "target_modules": ["embedding", "qkv"], "bias": "all"},
    "turned slices": {"d": 9, "target_modules": ["turned"], "bias": "all", "slices": {"turned": [[1, 4], [8, 12]]}},
    "not isometric": {"d": 7, "target_modules": ["qkv", "square"], "isometric": False},
}


def dense(adapter: GPartAdapter, names: list[str], shapes: dict[str, Any]) -> dict[str, Tensor]:
    own = deltas(adapter)
    return {name: own.get(name, torch.zeros(shapes[name], dtype=torch.float64)) for name in names}


def expected(a: GPartAdapter, b: GPartAdapter) -> dict[str, tuple[float, float, float]]:
    """‖a‖, ‖a - b‖ and the cosine of the live models' updates, in all ("") and by weight."""
    shapes = {**{n: v.shape for n, v in deltas(a).items()}, **{n: v.shape for n, v in deltas(b).items()}}
    one, other = dense(a, list(shapes), shapes), dense(b, list(shapes), shapes)

    def of(x: Tensor, y: Tensor) -> tuple[float, float, float]:
        both = float(x.norm() * y.norm())
        return float(x.norm()), float((x - y).norm()), float(x.dot(y)) / both if both else 0.0

    found = {name: of(one[name].reshape(-1), other[name].reshape(-1)) for name in shapes}
    found[""] = of(*(torch.cat([value.reshape(-1) for value in each.values()]) for each in (one, other)))
    return found


def close(found: float, true: float) -> bool:
    return math.isclose(found, true, rel_tol=1e-6, abs_tol=1e-6)


def agree(a: Any, b: Any) -> None:
    true = expected(a, b)
    a, b = Stored.of(a), Stored.of(b)  # once; the fingerprint of the base takes longer than all else
    assert close(norm(a), true[""][0])
    assert close(distance(a, b), true[""][1])
    assert close(cosine(a, b), true[""][2])
    distances, cosines = distance_by_weight(a, b), cosine_by_weight(a, b)
    assert set(distances) == set(cosines) == set(true) - {""}
    for name in distances:
        assert close(distances[name], true[name][1]), name
        assert close(cosines[name], true[name][2]), name
    for name, value in norm_by_weight(a).items():
        assert close(value, true[name][0]), name
    assert close(math.hypot(*norm_by_weight(a).values()), norm(a))
    assert close(math.hypot(*distances.values()), distance(a, b))


@pytest.mark.parametrize("settings", SAME.values(), ids=SAME)
def test_on_one_layout(settings: dict[str, Any]) -> None:
    agree(adapted(1, **settings), adapted(2, **settings))


ACROSS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "seed": ({}, {"seed": 3}),
    "d": ({}, {"d": 17}),
    "targets": ({}, {"target_modules": ["square", "picture"]}),
    "nothing shared": ({}, {"target_modules": ["picture"]}),
    "slices": ({}, {"slices": {"qkv": [[0, 3], [6, 9]]}}),
    "turned slices": ({}, {"slices": {"turned": [[0, 4], [8, 12]]}, "bias": "all"}),
    "two turned slices": ({"slices": {"turned": [[2, 9]]}}, {"slices": {"turned": [[0, 4], [8, 12]]}}),
    "bias": ({}, {"bias": "all"}),
    "one not isometric": ({}, {"isometric": False}),
    "order": ({"target_parameters": ["qkv.bias"]}, {"bias": "all"}),
    "padding": (
        {"target_modules": ["embedding"]},
        {"target_modules": ["embedding"], "slices": {"embedding": [[1, 4]]}},
    ),
}


@pytest.mark.parametrize(("one", "other"), ACROSS.values(), ids=ACROSS)
def test_across_layouts(one: dict[str, Any], other: dict[str, Any]) -> None:
    base = {"d": 11, "target_modules": ["qkv", "square", "turned"]}
    agree(adapted(1, **{**base, **one}), adapted(2, **{**base, **other}))


def test_theta_says_it_where_the_layout_is_isometric() -> None:
    a, b = (adapted(seed, d=11, target_modules=["qkv", "square"]) for seed in (1, 2))
    one, other = a.theta.detach().double(), b.theta.detach().double()
    assert norm(a) == pytest.approx(float(one.norm()), rel=1e-14)
    assert distance(a, b) == pytest.approx(float((one - other).norm()), rel=1e-14)
    assert cosine(a, b) == pytest.approx(float(one.dot(other) / one.norm() / other.norm()), rel=1e-14)


def test_an_adapter_beside_itself() -> None:
    a = Stored.of(adapted(d=11, target_modules=["qkv"]))
    assert distance(a, a) == 0.0
    assert cosine(a, a) == 1.0
    assert set(distance_by_weight(a, a).values()) == {0.0}
    zero = adapted(d=11, target_modules=["qkv"])
    zero.theta.data.zero_()
    assert (norm(zero), cosine(a, zero)) == (0.0, 0.0)
    assert distance(a, zero) == norm(a)


def test_close_adapters_keep_their_distance() -> None:
    """‖a‖² + ‖b‖² - 2<a, b> would have nothing left of it."""
    a = adapted(d=11, target_modules=["qkv"])
    b = adapted(d=11, target_modules=["qkv"])
    with torch.no_grad():
        a.theta.fill_(1.0)
        b.theta.copy_(a.theta)
        b.theta[3] += 2**-23
    assert distance(a, b) == 2**-23
    assert math.hypot(*distance_by_weight(a, b).values()) == pytest.approx(2**-23, rel=1e-12)


@pytest.mark.parametrize("other", [{"d": 11}, {"d": 17, "slices": {"turned": [[0, 4], [8, 12]]}}])
def test_a_chunk_at_a_time_gives_the_same(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"d": 11, "target_modules": ["qkv", "turned", "picture"]}
    a, b = Stored.of(adapted(1, **base)), Stored.of(adapted(2, **{**base, **other}))
    before = compare(a, b)
    asked: list[int] = []
    real: Callable[..., Tensor] = measures.Update.read

    def watched(self: Any, name: str, first: int, last: int) -> Tensor:
        asked.append(last - first)
        return real(self, name, first, last)

    monkeypatch.setattr(measures.Update, "read", watched)
    monkeypatch.setattr(measures, "CHUNK", 7)
    after = compare(a, b)
    assert max(asked) == 7
    assert after.whole.distance == pytest.approx(before.whole.distance, rel=1e-13)
    for name, moments in before.by_weight.items():
        assert after.by_weight[name].distance == pytest.approx(moments.distance, rel=1e-13)
        assert after.by_weight[name].product == pytest.approx(moments.product, rel=1e-12)


def test_a_weight_is_gone_through_in_chunks_of_a_million() -> None:
    from gpart.injection.targets import AdaptedWeight

    weight = AdaptedWeight("w", (3, 1 << 20), 0, ((0, 3, 0),), ())
    assert measures.CHUNK == 1 << 20
    assert list(measures.stretches(weight)) == [(0, 1 << 20), (1 << 20, 2 << 20), (2 << 20, 3 << 20)]


def test_other_bases_are_refused_unless_they_are_not_looked_at() -> None:
    a = adapted(1, d=11, target_modules=["qkv"])
    b = adapted(2, base_seed=1, d=11, target_modules=["qkv"])
    for measure in (distance, cosine, distance_by_weight, cosine_by_weight, compare):
        with pytest.raises(GPartError, match=r"different bases: fingerprints .* of their .* parts differ") as caught:
            measure(a, b)
        for each in (a, b):
            assert each.base_fingerprint() in str(caught.value)
    assert close(distance(a, b, check_base=False), expected(a, b)[""][1])


def test_other_saved_modules_hide_whether_the_bases_are_one() -> None:
    a = adapted(1, d=11, target_modules=["qkv"])
    b = adapted(2, d=11, target_modules=["qkv"], modules_to_save=["head"])
    with pytest.raises(GPartError, match=r"saved modules, which are None and \['head'\], so that they cannot tell"):
        distance(a, b)
    assert close(distance(a, b, check_base=False), expected(a, b)[""][1])


def test_two_shapes_of_one_name_are_two_bases() -> None:
    from torch import nn

    from gpart import GPartConfig, attach

    a, b = (attach(nn.Sequential(nn.Linear(4, width)), GPartConfig(d=2, target_modules=["0"])) for width in (4, 5))
    with pytest.raises(GPartError, match=r"0.weight has shape \[4, 4\] and \[5, 4\]"):
        compare(a, b, check_base=False)


def test_slices_whose_dimension_is_not_known_are_refused_where_it_counts() -> None:
    one, other = {"slices": {"square": [[0, 2]]}}, {"slices": {"square": [[1, 5]]}}
    a, b = (adapted(1, d=5, target_modules=["square"], **each) for each in (one, other))
    with pytest.raises(GPartError, match=r"square.weight has slices \[\(0, 2\)\] and \[\(1, 5\)\], and the files"):
        distance(a, b)
    assert close(norm(a), expected(a, a)[""][0])
    agree(a, adapted(2, d=5, target_modules=["square"], **one))
    # The same slices cut both the same way, whichever that is: also of the transposed layer, and under another seed.
    turned = {"target_modules": ["squared"], "slices": {"squared": [[0, 2], [3, 4]]}}
    agree(adapted(1, d=5, **turned), adapted(2, d=7, seed=3, **turned))


def test_what_is_no_adapter_is_refused(tmp_path: Any) -> None:
    with pytest.raises(GPartError, match="not str"):
        norm(str(tmp_path))  # type: ignore[arg-type]
