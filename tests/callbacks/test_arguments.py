"""GPartCallback takes what the config and the memory policy have, by the same names, types and defaults."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import get_args, get_type_hints

import pytest

from gpart import GPartConfig, attach, load_adapter
from gpart.callbacks import GPartCallback
from gpart.config import MemoryPolicy

ITS_OWN = {"name", "module", "copies", "adapter", "check_base", "save_folder", "save", "checkpoints", "merge_at_end"}
SETTINGS = {
    "d": 7, "target_modules": ["q"], "modules_to_save": ["head"], "seed": 5, "exclude_modules": ["out"],
    "slices": {"q": [[0, 2]]}, "bias": "all", "dropout": 0.25, "isometric": False,
    "target_parameters": ["experts.w"], "projection": "hash",
}  # fmt: skip


def test_the_arguments_are_the_fields_and_the_callbacks_own() -> None:
    arguments = set(inspect.signature(GPartCallback.__init__).parameters) - {"self"}
    settings = {one.name for one in fields(GPartConfig)} | {one.name for one in fields(MemoryPolicy)}
    assert arguments == settings | ITS_OWN
    assert set(SETTINGS) == {one.name for one in fields(GPartConfig)}, "a new field is to be tried below"


@pytest.mark.parametrize("of", [GPartConfig, MemoryPolicy])
def test_defaults_and_types_are_the_same(of: type) -> None:
    hints, theirs = get_type_hints(GPartCallback.__init__), get_type_hints(of)
    parameters = inspect.signature(GPartCallback.__init__).parameters
    for field in fields(of):
        default = parameters[field.name].default
        if field.default is MISSING:  # an adapter folder may have it
            assert default is None
            assert hints[field.name] == theirs[field.name] | None
        else:
            assert default == field.default
            assert hints[field.name] == theirs[field.name]


def test_every_setting_reaches_the_config() -> None:
    assert GPartCallback(**SETTINGS).config == GPartConfig(**SETTINGS)
    assert all(value != getattr(GPartConfig(1, ["x"]), name) for name, value in SETTINGS.items())
    assert GPartCallback(**SETTINGS, indices="computed", weights="kept").memory == MemoryPolicy("computed", "kept")


@pytest.mark.parametrize("function", [attach, load_adapter])
def test_the_functions_take_the_memory_policy_as_it_is(function: object) -> None:
    hints, parameters = get_type_hints(function), inspect.signature(function).parameters  # type: ignore[arg-type]
    for field in fields(MemoryPolicy):
        assert parameters[field.name].default == field.default
        assert hints[field.name] == get_type_hints(MemoryPolicy)[field.name]


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("bias", ("none", "all")),
        ("indices", ("auto", "stored", "computed")),
        ("weights", ("auto", "kept", "forward", "recomputed")),
    ],
)
def test_choices_are_literals_which_help_lists(name: str, choices: tuple[str, ...]) -> None:
    assert get_args(get_type_hints(GPartCallback.__init__)[name]) == choices
