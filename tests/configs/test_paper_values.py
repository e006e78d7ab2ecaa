"""Each recipe is held to a table of the paper's and its code's values, and its header names what differs.

The tables are ``paper/*.py`` beside this file, one for each family: RECIPES has the settings of each recipe by name, and SAID
what else its header says. A new family is a new file.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from paper_values import ABSENT, Value

from gpart.cli.configs import CONFIGS

FAMILIES = {path.stem: runpy.run_path(str(path)) for path in sorted(Path(__file__).with_name("paper").glob("*.py"))}
TABLES: dict[str, list[Value]] = {
    name: rows for family in FAMILIES.values() for name, rows in family["RECIPES"].items()
}
SAID: dict[str, list[str]] = {name: said for family in FAMILIES.values() for name, said in family["SAID"].items()}
FOLDERS = ("glue", "glue-large", "math", "vision", "vision-large")
"""The folders of which every recipe has a table."""
FILES = ("trainer.default_root_dir",)
"""Settings that change no number."""


def settings_of(recipe: str) -> dict[str, Any]:
    """The recipe's settings by the names that the command line has for them."""
    found: dict[str, Any] = {}

    def add(place: str, value: Any) -> None:
        if place == "trainer.callbacks":
            keeper = next(one["init_args"] for one in value if one["class_path"] == "ModelCheckpoint")
            found[place] = {key: keeper[key] for key in ("monitor", "mode")}
        elif isinstance(value, dict):
            for key, inner in value.items():
                add(place if key == "init_args" else f"{place}.{key}".lstrip("."), inner)
        else:
            found[place] = value

    add("", yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text()))
    return {name: value for name, value in found.items() if name not in FILES}


def header_of(recipe: str) -> tuple[str, list[str]]:
    """The comment above the settings as one text, and its items, which begin with a dash, or its paragraphs."""
    lines = [line[2:] for line in (CONFIGS / f"{recipe}.yaml").read_text().splitlines() if line.startswith("#")]
    items: list[str] = []
    for line in lines:
        if line.startswith("  ") and items and items[-1].startswith("- "):
            items[-1] += f" {line.strip()}"
        else:
            items.append(line)
    return " ".join(" ".join(lines).split()), items


def names(text: str, said: str) -> bool:
    """Whether the text has these words whole: 0.4 is not in 0.45."""
    return re.search(rf"(?<!\w)(?<!\d\.){re.escape(said)}(?!\w|\.\d)", text) is not None


def called(value: Value, table: list[Value]) -> str:
    """The setting's last name, or its whole name where two have the same last one."""
    return value.name if sum(one.name == value.name for one in table) == 1 else value.setting


def test_every_recipe_has_its_table() -> None:
    shipped = {f"{folder}/{path.stem}" for folder in FOLDERS for path in (CONFIGS / folder).glob("*.yaml")}
    assert len(shipped) == 2 * 6 + 6 + 2 * 8
    assert shipped <= set(TABLES)
    assert set(TABLES) == set(SAID)


@pytest.mark.parametrize("recipe", TABLES)
def test_a_recipe_has_the_values_of_its_table_and_no_others(recipe: str) -> None:
    table, settings = TABLES[recipe], settings_of(recipe)
    assert len({value.setting for value in table}) == len(table)
    assert settings == {value.setting: value.here for value in table if value.here is not ABSENT}
    for value in table:  # 1 == 1.0 == True
        assert value.here is ABSENT or type(settings[value.setting]) is type(value.here), value.setting


@pytest.mark.parametrize("recipe", TABLES)
def test_each_value_has_its_source_and_each_difference_its_reason(recipe: str) -> None:
    for value in TABLES[recipe]:
        assert value.source, value.setting
        assert bool(value.why) == bool(value.other), value.setting


@pytest.mark.parametrize("recipe", TABLES)
def test_the_header_names_what_differs_with_the_other_value(recipe: str) -> None:
    text, items = header_of(recipe)
    for value in TABLES[recipe]:
        if not value.other:
            continue
        # A recipe has an item for each; an overlay's few lines are one text.
        places = [item for item in items if item.startswith("- ")] or [text]
        name = called(value, TABLES[recipe])
        same = [place for place in places if names(place, name) and names(place, value.other)]
        assert same, f"{recipe}: no item of the header names {name} and {value.other!r}"
        if value.here is not ABSENT and len(places) > 1:
            assert any(has(place, value.here) for place in same), f"{recipe}: {same} do not name {value.here}"
            if numbers(value.other):  # then the item has these two numbers, and no third
                assert numbers(same[0]) == {value.here} | numbers(value.other), f"{recipe}: {same}"


def has(text: str, here: Any) -> bool:
    """Whether the text has a value: a number, true or false, or a word. Of lists and whole sentences it has the name alone."""
    if isinstance(here, bool):
        return names(text, str(here).lower())
    if isinstance(here, str):
        return " " in here or names(text, here)
    return here in numbers(text) if isinstance(here, int | float) else True


def numbers(text: str) -> set[float]:
    """The numbers in a text, however they are written."""
    return {float(word) for word in re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?:e-?\d+)?(?!\w)", text)}


@pytest.mark.parametrize("recipe", TABLES)
def test_the_header_says_what_belongs_to_the_figure(recipe: str) -> None:
    text, _ = header_of(recipe)
    for said in SAID[recipe]:
        assert said in text, f"{recipe}: {said!r} is not in its header"


def test_no_header_names_a_difference_that_is_none() -> None:
    """An item that was left behind when its setting changed."""
    for recipe, table in TABLES.items():
        differ = [called(value, table) for value in table if value.other]
        for item in header_of(recipe)[1]:
            assert not item.startswith("- ") or any(names(item, name) for name in differ), f"{recipe}: {item}"
