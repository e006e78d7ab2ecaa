"""Adapters added up: exact on one layout, refused across layouts, heads never chosen silently."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from many_layers import adapted, deltas, many
from torch import Tensor

from gpart import GPartConfig, attach, load_adapter
from gpart.adapter import GPartAdapter
from gpart.arithmetic import Stored, average, combine, interpolate, negate, norm, read
from gpart.arithmetic.merging import COMBINATION_TYPES, merged
from gpart.errors import GPartError
from gpart.serialization.about import About

BASE: dict[str, Any] = {"d": 11, "seed": 5, "target_modules": ["qkv", "square"]}
HEAD = {**BASE, "modules_to_save": ["head"]}
Same = Callable[[Tensor, Tensor], bool]


def whole_numbers(values: list[float], **settings: Any) -> Stored:
    """A stored adapter whose theta starts with these numbers, and is 0 elsewhere."""
    adapter = adapted(**{**BASE, **settings})
    with torch.no_grad():
        adapter.theta.zero_()
        adapter.theta[: len(values)] = torch.tensor(values)
    return Stored.of(adapter)


def with_head(add: float, **settings: Any) -> GPartAdapter:
    adapter = adapted(**{**HEAD, **settings})
    with torch.no_grad():
        adapter.model.head.weight.add_(add)
    return adapter


# Linear


def test_the_sum_is_thetas_to_the_bit_where_nothing_rounds(same_bits: Same) -> None:
    a, b, c = (whole_numbers(values) for values in ([3.0, -1.0, 8.0], [5.0, 0.5, -2.0], [0.0, 7.0, 1.0]))
    made = combine({a: 0.5, b: -1.0, c: 2.0})
    assert same_bits(made.theta[:4], torch.tensor([-3.5, 13.0, 8.0, 0.0]))
    assert not same_bits(combine({a: -1.0, b: 0.5, c: 2.0}).theta, made.theta)  # each has its own coefficient


def test_the_sum_of_updates_is_the_update_of_the_sum() -> None:
    adapters = [adapted(seed, **BASE, bias="all") for seed in (1, 2, 3)]
    coefficients = (0.3, -1.7, 0.01)
    made = combine(dict(zip(adapters, coefficients, strict=True)))
    live = adapted(**BASE, bias="all")
    with torch.no_grad():
        live.theta.copy_(made.theta)
    parts = [deltas(adapter) for adapter in adapters]
    length = 0.0
    for name, delta in deltas(live).items():
        expected = sum(coefficient * part[name] for coefficient, part in zip(coefficients, parts, strict=True))
        assert torch.allclose(delta, expected, rtol=0, atol=1e-6)
        length += float(expected.square().sum())
    assert norm(made) == pytest.approx(math.sqrt(length), rel=1e-6)


def test_several_active_adapters_are_the_combined_one() -> None:
    from gpart import set_active

    model = many()
    live = [attach(model, GPartConfig(**BASE), name=name) for name in ("one", "other")]
    with torch.no_grad():
        for number, adapter in enumerate(live):
            adapter.theta.copy_(torch.randn(11) + number)
    set_active(model, ["one", "other"], weights=[0.5, -1.0])
    made = combine({live[0]: 0.5, live[1]: -1.0})
    both = model.qkv.weight.detach().clone()
    set_active(model, "one")
    with torch.no_grad():
        live[0].theta.copy_(made.theta)
    assert torch.allclose(model.qkv.weight, both, rtol=0, atol=1e-6)


def test_it_is_rounded_once() -> None:
    """In float32 steps the small one would be lost against the large one."""
    a, b, c = (whole_numbers([value]) for value in (2.0**25, 1.0, -(2.0**25)))
    assert combine({a: 1.0, b: 1.0, c: 1.0}).theta[0] == 1.0


def test_one_adapter_and_coefficients_of_1_and_0_keep_every_bit(same_bits: Same) -> None:
    a, b = whole_numbers([-0.0, 0.1, 1e-45]), whole_numbers([3.0, 4.0, 5.0])
    for made in (combine({a: 1.0}), combine({a: 1.0, b: 0.0}), combine({b: 0.0, a: 1.0}), average([a, a, a])):
        assert same_bits(made.theta, a.theta)
    assert same_bits(interpolate(a, b, 0.0).theta, a.theta)
    assert same_bits(interpolate(a, b, 1.0).theta, b.theta)
    assert same_bits(interpolate(a, a, 0.25).theta, a.theta)
    assert same_bits(negate(negate(a)).theta, a.theta)
    assert same_bits(negate(a).theta, -a.theta)
    assert same_bits(combine({a: 0.0, b: 0.0}).theta, torch.zeros(11))
    assert same_bits(combine([(a, 0.5), (a, 0.5)]).theta, a.theta)  # a mapping has it once


def test_average_and_interpolate() -> None:
    a, b, c = (whole_numbers(values) for values in ([2.0, 4.0], [4.0, -8.0], [0.0, 1.0]))
    assert average([a, b]).theta[:2].tolist() == [3.0, -2.0]
    assert average([a, b, c]).theta[:2].tolist() == [2.0, -1.0]
    assert interpolate(a, b, 0.25).theta[:2].tolist() == [2.5, 1.0]
    assert interpolate(a, b, 2.0).theta[:2].tolist() == [6.0, -20.0]


def test_a_live_adapter_is_taken_as_it_is_now() -> None:
    live = adapted(**BASE)
    before = live.theta.detach().clone()
    made = combine({live: 1.0})
    with torch.no_grad():
        live.theta.add_(1.0)
    assert torch.equal(made.theta, before)
    assert made.manifest.config == live.config


def test_the_result_loads_and_its_manifest_is_true(tmp_path: Path, same_bits: Same) -> None:
    a, b = adapted(1, **BASE), adapted(2, **BASE)
    a.save(tmp_path / "a")
    stored = read(tmp_path / "a")
    old = Stored(replace(stored.manifest, versions={"gpart": "0.0.1"}), stored.tensors)
    made = combine({old: 0.5, b: -1.0}, name="both")
    made.save(tmp_path / "made")
    assert made.manifest.versions == a.manifest().versions
    assert (made.manifest.name, made.manifest.base) == ("both", a.base_fingerprint())
    loaded = load_adapter(many(), tmp_path / "made")
    assert same_bits(loaded.theta.detach(), made.theta)
    again = read(tmp_path / "made")
    assert again.manifest == made.manifest
    assert combine({old: 1.0}).manifest.name == "default"


def test_wider_numbers_stay_wide() -> None:
    a = whole_numbers([1.0])
    wide = Stored(a.manifest, {"gpart.default.theta": a.theta.double() / 3})
    assert combine({a: 1.0, wide: 1.0}).theta.dtype == torch.float64
    narrow = Stored(a.manifest, {"gpart.default.theta": a.theta.bfloat16()})
    assert combine({narrow: 1.0}).theta.dtype == torch.float32


# What cannot be added up


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 6}, "seed is 5 and 6"),
        ({"d": 12}, "d is 11 and 12"),
        ({"isometric": False}, "isometric is True and False"),
        ({"target_modules": ["qkv"]}, "only the first adapts square.weight; D is 90 and 54"),
    ],
)
def test_other_layouts_are_refused_with_what_to_do(change: dict[str, Any], said: str) -> None:
    a, b = adapted(**BASE), adapted(**{**BASE, **change})
    with pytest.raises(GPartError, match=said) as caught:
        combine({a: 1.0, b: 1.0})
    assert "gpart.set_active" in str(caught.value)
    assert "gpart.arithmetic.project" in str(caught.value)


def test_other_bases_are_refused() -> None:
    a, b = adapted(**BASE), adapted(base_seed=1, **BASE)
    with pytest.raises(GPartError, match="different bases"):
        combine({a: 1.0, b: 1.0})
    assert combine({a: 1.0, b: 1.0}, check_base=False).manifest.base == a.base_fingerprint()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"combination_type": "svd"}, "is for low-rank adapters"),
        ({"combination_type": "ties_svd", "density": 0.5}, "is for low-rank adapters"),
        ({"combination_type": "slerp"}, "combination_type must be one of 'linear', 'ties', .*, got 'slerp'"),
        ({"combination_type": "ties"}, "needs density, .*; got None"),
        ({"combination_type": "ties", "density": 0}, "above 0 and at most 1; got 0"),
        ({"combination_type": "dare_linear", "density": 1.5}, "got 1.5"),
        ({"combination_type": "ties", "density": True}, "got True"),
        ({"combination_type": "ties", "density": math.nan}, "got nan"),
        ({"density": 0.5}, "takes no density, got 0.5"),
        (
            {"combination_type": "ties", "density": 0.5, "majority_sign_method": "most"},
            "'total', 'frequency', got 'most'",
        ),
        ({"combination_type": "dare_ties", "density": 0.5, "seed": -1}, "seed must be a whole number .* got -1"),
        ({"combination_type": "dare_ties", "density": 0.5, "seed": 0.5}, "got 0.5"),
        ({"name": "a.b"}, "name consists of letters"),
        ({"name": ""}, "name consists of letters"),
        ({"heads": 2}, "its number from 0 to 1, got 2"),
        ({"heads": True}, "got True"),
        ({"heads": "best"}, "got 'best'"),
    ],
)
def test_settings_that_are_wrong_are_refused(given: dict[str, Any], said: str) -> None:
    a, b = whole_numbers([1.0]), whole_numbers([2.0])
    with pytest.raises(GPartError, match=said):
        combine({a: 0.5, b: 0.5}, **given)


def test_coefficients_and_adapters_that_are_none_are_refused() -> None:
    a = whole_numbers([1.0])
    for wrong in (math.inf, math.nan, "1", None, True):
        with pytest.raises(GPartError, match="the coefficient of adapter 0 must be a finite number"):
            combine({a: wrong})
    with pytest.raises(GPartError, match="t must be a finite number, got nan"):
        interpolate(a, a, math.nan)
    with pytest.raises(GPartError, match="nothing to combine"):
        combine({})
    with pytest.raises(GPartError, match="nothing to combine"):
        average([])
    with pytest.raises(GPartError, match="1 of the 11 numbers"):
        combine({whole_numbers([3e38]): 2.0})


# TIES, DARE and pruning


def ties_by_hand(vectors: list[list[float]], coefficients: list[float], density: float, frequency: bool) -> list[float]:
    """Trim, elect, merge: number by number."""
    count = len(vectors[0])
    trimmed = []
    for vector in vectors:
        ranked = sorted(range(count), key=lambda i: (-abs(vector[i]), i))[: int(density * count + 1e-9)]
        trimmed.append([value if i in ranked else 0.0 for i, value in enumerate(vector)])
    out = []
    for i in range(count):
        votes = [coefficient * vector[i] for coefficient, vector in zip(coefficients, trimmed, strict=True)]
        ballots = [(vote > 0) - (vote < 0) for vote in votes] if frequency else votes
        sign = 1 if sum(ballots) >= 0 else -1
        agreeing = [vote for vote in votes if vote * sign > 0]
        out.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return out


VECTORS = [
    [4.0, 1.0, -2.0, 0.5, 0.0, -8.0, 3.0, 1.0],
    [2.0, -3.0, 0.5, 0.25, 7.0, 1.0, -4.0, 1.0],
    [-5.0, -1.0, -1.0, 6.0, 2.0, 1.0, 0.5, -3.0],
]


@pytest.mark.parametrize("coefficients", [[1.0, 1.0, 1.0], [0.5, -1.0, 2.0], [1.0, 0.0, -3.0]])
@pytest.mark.parametrize("density", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("method", ["total", "frequency"])
def test_ties_is_trim_elect_and_disjoint_mean(coefficients: list[float], density: float, method: Any) -> None:
    made = merged([torch.tensor(vector) for vector in VECTORS], coefficients, "ties", density, method)
    assert made.tolist() == pytest.approx(ties_by_hand(VECTORS, coefficients, density, method == "frequency"))


def test_ties_by_numbers() -> None:
    """Written out: 1 and 0.5 are trimmed; at 2 the signs differ and 6 + 1 > 4; at 3 both agree."""
    a, b = torch.tensor([0.5, 4.0, -2.0, 6.0]), torch.tensor([1.0, -6.0, -4.0, 2.0])
    assert merged([a, b], [1.0, 1.0], "ties", 0.75).tolist() == [0.0, -6.0, -3.0, 4.0]
    # To be subtracted, b votes the other way.
    assert merged([a, b], [1.0, -1.0], "ties", 0.75).tolist() == [0.0, 5.0, 4.0, 6.0]


def test_the_sign_of_most_and_of_the_sum() -> None:
    vectors = [torch.tensor([value]) for value in (1.0, 2.0, -9.0)]
    assert merged(vectors, [1.0] * 3, "ties", 1.0, "total").tolist() == [-9.0]
    assert merged(vectors, [1.0] * 3, "ties", 1.0, "frequency").tolist() == [1.5]
    assert merged([torch.tensor([1.0]), torch.tensor([-1.0])], [1.0, 1.0], "ties", 1.0).tolist() == [1.0]


def test_pruning_keeps_the_largest_and_of_equal_ones_the_first() -> None:
    a, b = torch.tensor([1.0, -3.0, 3.0, 2.0]), torch.tensor([1.0, 1.0, -1.0, 1.0])
    assert merged([a, b], [1.0, 10.0], "magnitude_prune", 0.5).tolist() == [10.0, 7.0, 3.0, 0.0]
    assert merged([torch.ones(100)], [1.0], "magnitude_prune", 0.29).sum() == 29  # 0.29 * 100 is 28.999999999999996


@pytest.mark.parametrize("kind", ["dare_linear", "dare_ties"])
def test_dare_drops_at_random_by_its_seed(kind: Any, same_bits: Same) -> None:
    a, b = torch.randn(20_000), torch.randn(20_000)
    made = merged([a, b], [1.0, 1.0], kind, 0.25, seed=3)
    assert same_bits(made, merged([a, b], [1.0, 1.0], kind, 0.25, seed=3))
    assert not torch.equal(made, merged([a, b], [1.0, 1.0], kind, 0.25, seed=4))
    before = torch.random.get_rng_state()
    merged([a], [1.0], kind, 0.25)
    assert torch.equal(before, torch.random.get_rng_state())  # the user's own draws go on as they would


def test_dare_keeps_the_share_and_the_mean() -> None:
    ones = torch.ones(40_000)
    made = merged([ones], [3.0], "dare_linear", 0.25)
    assert set(made.tolist()) == {0.0, 12.0}
    assert float((made != 0).double().mean()) == pytest.approx(0.25, abs=0.01)
    both = merged([ones, ones], [1.0, 1.0], "dare_linear", 0.25)
    assert float((both == 8).double().mean()) == pytest.approx(0.0625, abs=0.01)  # each has draws of its own
    assert torch.equal(merged([ones], [3.0], "dare_linear", 1.0), 3 * ones.double())


def test_dare_ties_elects_among_what_was_kept() -> None:
    a, b = torch.full((1000,), 1.0), torch.full((1000,), -4.0)
    made = merged([a, b], [1.0, 1.0], "dare_ties", 0.5)
    assert set(made.tolist()) == {0.0, 2.0, -8.0}


@pytest.mark.parametrize("kind", ["ties", "magnitude_prune"])
@pytest.mark.parametrize("method", ["total", "frequency"])
@pytest.mark.slow
def test_equal_coefficients_give_pefts_numbers(kind: str, method: str) -> None:
    from peft.utils import merge_utils

    vectors = [torch.randn(501, dtype=torch.float64) for _ in range(3)]
    more = {"majority_sign_method": method} if kind == "ties" else {}
    theirs = getattr(merge_utils, kind)(vectors, torch.full((3,), 0.5), 0.3, **more)
    ours = merged(vectors, [0.5] * 3, kind, 0.3, **more)
    assert torch.allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("kind", COMBINATION_TYPES)
def test_every_way_goes_through_combine(kind: Any) -> None:
    a, b = adapted(1, **BASE), adapted(2, **BASE)
    density = None if kind == "linear" else 0.5
    made = combine({a: 0.5, b: -1.0}, kind, density=density, seed=8)
    expected = merged([a.theta.detach(), b.theta.detach()], [0.5, -1.0], kind, density, seed=8)
    assert torch.equal(made.theta, expected.float())


# Heads


def test_equal_heads_pass(same_bits: Same) -> None:
    a, b = with_head(0.0), with_head(0.0, theta_seed=2)
    made = combine({a: 0.5, b: -1.0})
    assert set(made.heads) == {"head.weight", "head.bias"}
    assert same_bits(made.heads["head.weight"], a.model.head.weight.detach())


def test_heads_that_differ_are_refused() -> None:
    with pytest.raises(GPartError, match=r"different heads: head.weight differ. heads='combine' .* name the adapter"):
        combine({with_head(0.0): 0.5, with_head(1.0): 0.5})


def test_heads_are_chosen(same_bits: Same) -> None:
    a, b = with_head(0.0), with_head(1.0)
    for heads, of in ((0, a), (1, b), (a, a), (b, b)):
        made = combine({a: 0.5, b: -1.0}, heads=heads)
        assert same_bits(made.heads["head.weight"], of.model.head.weight.detach())
    stored = Stored.of(b)
    assert same_bits(combine({a: 2.0, stored: 1.0}, heads=stored).heads["head.weight"], stored.heads["head.weight"])
    with pytest.raises(GPartError, match="heads must be"):
        combine({a: 1.0}, heads=b)


def test_heads_are_combined_where_the_coefficients_add_up_to_1() -> None:
    a, b = with_head(0.0), with_head(1.0)
    before = a.model.head.weight.detach().double()
    made = combine({a: 0.75, b: 0.25}, heads="combine").heads
    assert torch.allclose(made["head.weight"].double(), before + 0.25, atol=1e-7)
    assert torch.equal(made["head.bias"], a.model.head.bias.detach())
    assert torch.allclose(interpolate(a, b, 2.0, heads="combine").heads["head.weight"].double(), before + 2, atol=1e-6)
    mean = average([a, b, with_head(2.0)], heads="combine").heads["head.weight"]
    assert torch.allclose(mean.double(), before + 1, atol=1e-6)
    ten = average([a, b] * 5, heads="combine").heads["head.weight"]  # ten times 0.1 is not 1
    assert torch.allclose(ten.double(), before + 0.5, atol=1e-6)
    with pytest.raises(GPartError, match=r"add up to 1, .* \[0.5, -1.0\] add up to -0.5"):
        combine({a: 0.5, b: -1.0}, heads="combine")


def test_heads_of_other_classes_are_not_added_up() -> None:
    a, b = Stored.of(with_head(0.0)), Stored.of(with_head(1.0))

    def named(one: Stored, labels: list[str]) -> Stored:
        return Stored(replace(one.manifest, about=About(labels=labels)), one.tensors, one.source)

    first = named(a, ["no", "maybe", "yes"])
    for labels in (["yes", "maybe", "no"], ["x", "y", "z"]):
        with pytest.raises(GPartError, match=rf"the classes \['no', 'maybe', 'yes'\], .* {re.escape(str(labels))}"):
            combine({first: 0.5, named(b, labels): 0.5}, heads="combine")
    combine({first: 0.5, b: 0.5}, heads="combine")  # it names none
    combine({first: 0.5, named(b, ["x", "y", "z"]): 0.5}, heads=0)


def test_heads_of_other_names_or_shapes_are_refused_or_chosen() -> None:
    a, b = adapted(**BASE), with_head(0.0)
    with pytest.raises(
        GPartError, match=r"adapter 'default' holds head.bias, head.weight, which adapter 'default' lacks"
    ):
        combine({a: 0.5, b: 0.5}, check_base=False)
    made = combine({a: 0.5, b: 0.5}, heads=b, check_base=False)
    assert made.manifest.config.modules_to_save == ["head"]
    assert made.manifest.base == b.base_fingerprint()  # without the head, as the file's reader computes it
    assert combine({a: 0.5, b: 0.5}, heads=a, check_base=False).manifest.config.modules_to_save is None
    one = Stored.of(b)
    other = Stored(one.manifest, {**one.tensors, "head.weight": torch.zeros(2, 6)}, "another")
    with pytest.raises(
        GPartError, match=r"head.weight has shape \[3, 6\] in adapter 'default' and \[2, 6\] in another"
    ):
        combine({one: 0.5, other: 0.5}, heads="combine")


def test_whole_numbers_in_buffers_are_not_averaged() -> None:
    a = Stored.of(adapted(**BASE))
    one, other = (Stored(a.manifest, {**a.tensors, "steps": torch.tensor(count)}) for count in (3, 4))
    with pytest.raises(GPartError, match=r"steps holds torch.int64, which has no weighted sum"):
        combine({one: 0.5, other: 0.5}, heads="combine")
    assert combine({one: 0.5, other: 0.5}, heads=1).heads["steps"] == 4
    assert combine([(one, 0.5), (one, 0.5)], heads="combine").heads["steps"] == 3


def test_negating_leaves_the_heads() -> None:
    a = with_head(1.0)
    made = negate(a)
    assert torch.equal(made.heads["head.weight"], a.model.head.weight.detach())


def test_the_result_shares_no_memory() -> None:
    a = Stored.of(with_head(1.0))
    made = combine({a: 1.0})
    made.heads["head.weight"].zero_()
    made.theta.zero_()
    assert a.heads["head.weight"].any()
    assert a.theta.any()


def test_a_chosen_head_loads(tmp_path: Path) -> None:
    a, b = with_head(0.0), with_head(1.0)
    combine({a: 0.5, b: -1.0}, heads=b).save(tmp_path)
    model = many()
    loaded = load_adapter(model, tmp_path)
    assert torch.equal(model.head.weight, b.model.head.weight)
    expected = 0.5 * a.theta.detach().double() - b.theta.detach().double()
    assert torch.equal(loaded.theta.detach(), expected.float())
    assert attach(many(), b.config).config == loaded.config
