"""The layout from a manifest alone is the one that the live model has, position for position."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from many_layers import adapted, deltas

from gpart.arithmetic import Stored, layout_of, same_layout
from gpart.arithmetic.measures import Update
from gpart.arithmetic.positions import groups_of, places
from gpart.errors import GPartError
from gpart.injection.targets import AdaptedWeight

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["qkv", "square"]},
    "all": {"target_modules": "all-linear"},
    "regex": {"target_modules": r"(qkv|turned|picture)"},
    "padding": {"target_modules": ["embedding", "square", "first"]},
    "padding and slices": {"target_modules": ["embedding"], "slices": {"embedding": [[1, 4], [5, 7]]}},
    "attention": {"target_modules": ["attention", "apart"], "bias": "all"},
    "attention in slices": {
        "target_modules": ["attention"],
        "bias": "all",
        "slices": {"attention": [[0, 6], [12, 18]]},
    },
    "bias": {"target_modules": ["qkv", "picture", "norm"], "bias": "all"},
    "slices": {"target_modules": ["qkv", "square"], "slices": {"qkv": [[0, 3], [6, 9]]}},
    "slices and bias": {
        "target_modules": ["qkv", "square"],
        "bias": "all",
        "slices": {"qkv": [[0, 2], [4, 5], [6, 9]]},
    },
    "turned slices": {"target_modules": ["turned", "square"], "slices": {"turned": [[0, 4], [8, 12]]}},
    "turned slices and bias": {"target_modules": ["turned"], "bias": "all", "slices": {"turned": [[1, 4], [8, 9]]}},
    "turned slices within both": {"target_modules": ["turned"], "slices": {"turned": [[1, 4]]}},
    "parameters": {"target_parameters": ["weight_ih_l0", "bias_hh_l0"], "target_modules": ["qkv"]},
    "parameters in slices": {"target_parameters": ["weight_ih_l0"], "slices": {"weight_ih_l0": [[0, 4], [8, 12]]}},
    "a layer's slices and a parameter's": {
        "target_modules": ["qkv"],
        "target_parameters": ["cell.bias_ih_l0", "cell.weight_ih_l0"],
        "bias": "all",
        "slices": {"qkv": [[0, 3], [6, 9]], "weight_ih_l0": [[0, 4], [8, 12]], "bias_ih_l0": [[4, 8]]},
    },
    "a parameter's weight and bias, each in slices": {
        "target_modules": ["square"],
        "target_parameters": ["picture.weight", "picture.bias"],
        "bias": "all",
        "slices": {"picture.weight": [[0, 1], [2, 4]], "picture.bias": [[0, 1], [2, 4]]},
    },
    "a bias whose weight another layer has": {
        "target_modules": ["qkv", "twin"],
        "bias": "all",
        "slices": {"qkv": [[0, 3], [6, 9]], "twin": [[0, 3], [6, 9]]},
    },
    "saved": {"target_modules": "all-linear", "modules_to_save": ["head"]},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("isometric", [True, False])
def test_the_update_is_read_as_the_live_model_has_it(settings: dict[str, Any], isometric: bool) -> None:
    adapter = adapted(d=11, seed=5, isometric=isometric, **settings)
    stored = Stored.of(adapter)
    update = Update(stored.layout, stored.theta)
    for name, delta in deltas(adapter).items():
        for step in (delta.numel(), 5):  # whole, and in stretches that end within rows and blocks
            read = [update.read(name, at, min(at + step, delta.numel()))[0] for at in range(0, delta.numel(), step)]
            # theta / sqrt(n) in float32 there, in float64 here
            assert torch.allclose(torch.cat(read), delta.reshape(-1), rtol=2e-7, atol=0)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_blocks_are_those_of_the_plan(settings: dict[str, Any]) -> None:
    adapter = adapted(d=2, **settings)
    layout = layout_of(adapter.manifest())
    assert layout.size == adapter.size
    for mine, its in zip(layout.weights, adapter.plan.weights, strict=True):
        assert (mine.name, mine.shape, mine.left_out) == (its.name, its.shape, its.left_out)
        if settings.get("slices"):
            assert (mine.dim, mine.blocks) == (its.dim, its.blocks)
        else:
            assert [offset for *_, offset in mine.blocks] == [offset for *_, offset in its.blocks]


def test_a_file_of_format_1_has_its_padding_rows_in_the_vector() -> None:
    from pathlib import Path

    from gpart.arithmetic import read

    stored = read(Path(__file__).parents[1] / "files" / "padding_format_1" / "adapter")
    assert stored.manifest.format == 1
    assert all(weight.left_out is None for weight in stored.layout.weights)
    assert sum(math.prod(weight.shape) for weight in stored.layout.weights) == stored.layout.size


def test_slices_of_a_square_weight_could_be_along_both() -> None:
    for name in ("square", "squared"):
        layout = layout_of(adapted(d=2, target_modules=[name], slices={name: [[0, 2]]}).manifest())
        assert not layout.sure
    assert layout_of(adapted(d=2, target_modules=["squared"]).manifest()).sure
    assert layout_of(adapted(d=2, target_modules=["qkv"], slices={"qkv": [[0, 2]]}).manifest()).sure


BASE = {"d": 11, "seed": 5, "target_modules": ["qkv", "square"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"d": 12}, "d is 11 and 12"),
        ({"seed": 6}, "seed is 5 and 6"),
        ({"isometric": False}, "isometric is True and False"),
        ({"target_modules": ["qkv"]}, "only the first adapts square.weight"),
        ({"target_modules": ["qkv", "square", "head"]}, "only the second adapts head.weight"),
        ({"bias": "all"}, "only the second adapts qkv.bias, square.bias"),
        ({"slices": {"qkv": [[0, 3]]}}, r"qkv.weight is adapted in \[\(0, 9\)\] and \[\(0, 3\)\]"),
    ],
)
def test_layouts_differ_in_what_decides_p(change: dict[str, Any], said: str) -> None:
    first, second = (adapted(**settings).manifest() for settings in (BASE, {**BASE, **change}))
    assert not same_layout(first, second)
    lines = layout_of(first).differences(layout_of(second))
    import re

    assert any(re.fullmatch(said, line) for line in lines), lines


def test_layouts_are_the_same_whatever_else_differs() -> None:
    first = adapted(**BASE).manifest()
    for change in (
        {"dropout": 0.5},
        {"target_modules": r"qkv|square"},
        {"slices": {"square": [[0, 6]]}},
        {"modules_to_save": ["head"]},
        {"exclude_modules": ["head"]},
    ):
        second = adapted(theta_seed=9, **{**BASE, **change}).manifest()
        assert same_layout(first, second), change
        assert layout_of(first).differences(layout_of(second)) == []


def test_order_shape_and_padding_row_are_told() -> None:
    layout = layout_of(adapted(d=2, target_modules=["first", "square"]).manifest())
    first, second = layout.weights
    turned = replace(layout, weights=(second, first))
    assert layout.differences(turned) == ["weight number 0 is first.weight and square.weight"]
    other = replace(layout, weights=(replace(first, left_out=1), second))
    assert layout.differences(other)[0] == "first.weight leaves out row 0 and row 1"
    other = replace(layout, weights=(replace(first, shape=(4, 5)), second))
    assert layout.differences(other)[0] == "first.weight has shape [5, 4] and [4, 5]"


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (None, "no list of adapted weights: None is none"),
        ("qkv", "no list of adapted weights: 'qkv' is none"),
        ([["qkv.weight"]], "no list of adapted weights"),
        ([["qkv.weight", 54]], "no list of adapted weights"),
        ([["qkv.weight", []]], "no list of adapted weights"),
        ([["qkv.weight", [9, -6]]], "no list of adapted weights"),
        ([["qkv.weight", [9, True]]], "no list of adapted weights"),
        ([["qkv.weight", [9, "6"]]], "no list of adapted weights"),
        ([[1, [9, 6]]], "no list of adapted weights"),
        ([["qkv.weight", [9, 6], 9]], "no list of adapted weights"),
        ([["qkv.weight", [9, 6], 1, 1]], "no list of adapted weights"),
        ([["qkv.weight", [9, 6]], ["qkv.weight", [6, 6]]], "lists a weight twice"),
        ([["qkv.weight", [9, 6]]], "a file has D = 90, but its 1 weights have 54 numbers"),
        ([], "a file has D = 90, but its 0 weights have 0 numbers"),
    ],
)
def test_a_list_of_weights_that_is_none_is_refused(weights: Any, said: str) -> None:
    manifest = replace(adapted(**BASE).manifest(), weights=weights)
    with pytest.raises(GPartError, match=said):
        layout_of(manifest, "a file")


def test_slices_and_d_that_do_not_fit_are_refused() -> None:
    manifest = adapted(d=3, target_modules=["qkv"], slices={"qkv": [[0, 9]]}).manifest()
    with pytest.raises(
        GPartError, match=r"a file has D = 53, but its 1 weights have 54 numbers; with slices .* it is 54"
    ):
        layout_of(replace(manifest, size=53), "a file")
    outside = replace(manifest, config=replace(manifest.config, slices={"qkv": [[0, 10]]}))
    with pytest.raises(GPartError, match="a file has D = 54, but"):
        layout_of(outside, "a file")
    beyond = replace(
        manifest, config=replace(manifest.config, slices={"qkv": [[2, 5], [9, 15]]})
    )  # 54 numbers all the same
    with pytest.raises(GPartError, match="a file has D = 54, but"):
        layout_of(beyond, "a file")
    with pytest.raises(GPartError, match="a file has d = 55, more than its D = 54"):
        layout_of(replace(manifest, config=replace(manifest.config, d=55)), "a file")


def test_a_scheme_that_is_not_known_is_refused() -> None:
    layout = layout_of(adapted(**BASE).manifest())
    with pytest.raises(GPartError, match="no scheme 'gpart-v9'; this version knows 'gpart-v1'"):
        groups_of(replace(layout, scheme="gpart-v9"))
    assert layout.differences(replace(layout, scheme="gpart-v9")) == ["scheme is gpart-v1 and gpart-v9"]


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_places_are_each_adapted_entry_once_and_in_order(dim: int) -> None:
    shape = (4, 5, 6)
    inner = math.prod(shape[dim + 1 :])
    outer = math.prod(shape[:dim])
    blocks = ((1, 2, 100), (3, 4, 100 + outer * inner))
    weight = AdaptedWeight("w", shape, dim, blocks, ())
    expected = torch.full(shape, -1)
    for start, stop, offset in blocks:
        part = expected.narrow(dim, start, stop - start)
        part.copy_(torch.arange(offset, offset + part.numel()).view(part.shape))
    for step in (1, 7, 25, 120):
        found = torch.full((120,), -1)
        for first in range(0, 120, step):
            last = min(first + step, 120)
            for place, begin, end in places(weight, first, last):
                found[first:last][place] = torch.arange(begin, end)
        assert torch.equal(found, expected.reshape(-1)), step
