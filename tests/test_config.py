"""A config that exists is valid by itself, and survives the way through a file."""

from __future__ import annotations

import json
import re

import pytest

from gpart import GPartConfig
from gpart.errors import GPartError

FULL = {
    "d": 7,
    "target_modules": ["q", "v"],
    "modules_to_save": ["head"],
    "seed": 2**64 - 1,
    "exclude_modules": r"layer\.0\..*",
    "slices": {"q": [[0, 2], [4, 6]]},
    "bias": "all",
    "dropout": 0.5,
    "isometric": False,
    "target_parameters": ["experts.down_proj"],
    "projection": "hash",
}


def test_the_defaults_are_the_documented_ones():
    assert GPartConfig(d=1, target_modules=["q"]).to_dict() == {
        "d": 1,
        "target_modules": ["q"],
        "modules_to_save": None,
        "seed": 0,
        "exclude_modules": None,
        "slices": None,
        "bias": "none",
        "dropout": 0.0,
        "isometric": True,
        "target_parameters": None,
        "projection": "partition",
    }


@pytest.mark.parametrize("settings", [FULL, {**FULL, "target_modules": "all-linear", "slices": None}])
def test_a_config_survives_json(settings):
    config = GPartConfig(**settings)
    assert config.to_dict() == settings
    assert GPartConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("d", value) for value in (0, -1, 1.0, "5", None, True, [1])],
        *[("seed", value) for value in (-1, 2**64, 0.0, "0", None, True)],
        *[("bias", value) for value in ("lora_only", "", None, True)],
        *[("dropout", value) for value in (-0.1, 1, 1.0, float("nan"), "0.1", None, True)],
        *[("projection", value) for value in ("Partition", "", None, 5, ["hash"], "authors")],
        *[("isometric", value) for value in (0, 1, "yes", None)],
        *[("target_modules", value) for value in ([], "", None, 5, [""], ["q", 5], {""}, {"q": 1}, "layer.(", b"q")],
        *[("exclude_modules", value) for value in ([], "", 5, [""], ["q", None], {5}, "*q")],
        *[("target_parameters", value) for value in (5, [""], ["w", 5], {""}, {"w": 1}, "w(", b"w")],
        *[("modules_to_save", value) for value in ("tail", [""], [5], {""}, 5)],
        *[("slices", value) for value in ("q", [[0, 1]], 5, {"q": None}, {"q": []}, {"q": "ab"}, {5: [[0, 1]]})],
        *[
            ("slices", {"q": pairs})
            for pairs in ([0, 1], [[0]], [[0, 1, 2]], [[0, 1.5]], [["a", "b"]], [[False, True]])
        ],
    ],
)
def test_a_bad_value_is_refused_by_its_name_and_value(field, value):
    with pytest.raises(ValueError) as caught:
        GPartConfig(**{"d": 1, "target_modules": ["q"], field: value})
    assert field in str(caught.value)
    shown = value
    if isinstance(value, dict) and field == "slices":
        shown = next(iter(value.values()))
        shown = shown[0] if isinstance(shown, list) and shown else shown
    assert repr(shown) in str(caught.value)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([[-1, 2]], "[-1, 2] after 0"),
        ([[2, 2]], "[2, 2] after 0"),
        ([[3, 2]], "[3, 2] after 0"),
        ([[0, 4], [3, 6]], "[3, 6] after 4"),
        ([[4, 6], [0, 2]], "[0, 2] after 6"),
    ],
)
def test_slices_that_overlap_or_fall_back_are_refused(pairs, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        GPartConfig(d=1, target_modules=["q"], slices={"q": pairs})


def test_a_map_without_groups_has_no_ablation():
    with pytest.raises(GPartError, match=r"isometric=False.*projection='fastfood'"):
        GPartConfig(d=1, target_modules=["q"], projection="fastfood", isometric=False)


def test_the_limits_themselves_are_taken():
    config = GPartConfig(d=1, target_modules=["q"], seed=2**64 - 1, dropout=0, slices={"q": [[0, 1], [1, 2]]})
    assert (config.d, config.seed, config.dropout) == (1, 2**64 - 1, 0)
    assert GPartConfig(d=1, target_modules=["q"], dropout=0.999).dropout == 0.999


def test_the_config_keeps_lists_of_its_own():
    """The caller's lists may change later, and a tuple equals the list that YAML gives."""
    targets, saved, slices = ["q"], ["head"], {"q": [[0, 2]]}
    config = GPartConfig(d=1, target_modules=targets, modules_to_save=saved, slices=slices)
    same = GPartConfig(d=1, target_modules=("q",), modules_to_save=("head",), slices={"q": ((0, 2),)})
    assert config == same
    targets.append("v")
    saved.append("other")
    slices["q"][0][1] = 99
    slices["v"] = [[0, 1]]
    assert config == same


@pytest.mark.parametrize("field", ["target_modules", "target_parameters", "exclude_modules", "modules_to_save"])
def test_a_set_is_a_list_in_order(field):
    """PEFT takes sets, and its own files are made of them."""
    names = {"value", "query", "key", "dense"}
    for given in (names, frozenset(names)):
        config = GPartConfig(**{"d": 1, "target_modules": ["q"], field: given})
        assert getattr(config, field) == ["dense", "key", "query", "value"]
        assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


def test_empty_means_none_where_none_is_allowed():
    config = GPartConfig(d=1, target_modules=["q"], modules_to_save=[], slices={})
    assert (config.modules_to_save, config.slices) == (None, None)
    assert config == GPartConfig(d=1, target_modules=["q"])


def test_a_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        GPartConfig(d=1, target_modules=["q"]).d = 2


def test_differences_name_every_setting_with_both_values():
    mine, other = GPartConfig(d=1, target_modules=["q"]), GPartConfig(d=2, target_modules=["q"], bias="all")
    assert mine.differences(other) == ["d is 1 and 2", "bias is 'none' and 'all'"]
    assert mine.differences(GPartConfig(d=1, target_modules=["q"])) == []


def test_a_set_of_names_and_numbers_is_refused_in_words():
    with pytest.raises(GPartError, match="must be a non-empty list of names or a regular expression"):
        GPartConfig(d=1, target_modules={"query", 3})
