"""The manifest: formats before and after this one, and what is refused with the version that wrote it."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from typing import Any

import pytest

from gpart import GPartConfig, GPartError
from gpart.serialization import manifest as module
from gpart.serialization.about import About
from gpart.serialization.manifest import FORMAT, Manifest, read_manifest

CONFIG = GPartConfig(d=3, target_modules=["q"], modules_to_save=["head"], seed=5, bias="all", dropout=0.1)
WRITTEN = Manifest("default", CONFIG, 8, [["q.weight", [2, 4]]], "f" * 64, versions={"gpart": "9.9", "torch": "2.6"})


def of_a_file(**changed: Any) -> dict[str, Any]:
    values = json.loads(json.dumps(WRITTEN.to_dict()))
    for key, value in changed.items():
        if value is None:
            del values[key]
        else:
            values[key] = value
    return values


def test_it_comes_back_from_json() -> None:
    assert read_manifest(of_a_file(), "a.json") == WRITTEN


def test_a_file_from_before_the_format_was_written_is_of_the_first() -> None:
    found = read_manifest(of_a_file(format=None), "a.json")
    assert found == replace(WRITTEN, format=1)


@pytest.mark.parametrize("field", [one.name for one in fields(GPartConfig) if one.name not in ("d", "target_modules")])
def test_a_setting_that_a_file_lacks_has_its_formats_default(field: str) -> None:
    config = {key: value for key, value in CONFIG.to_dict().items() if key != field}
    found = read_manifest(of_a_file(config=config), "a.json").config
    default = next(one.default for one in fields(GPartConfig) if one.name == field)
    assert found == replace(CONFIG, **{field: default})


def test_the_scheme_is_the_projections() -> None:
    hashed = replace(WRITTEN, config=replace(CONFIG, projection="hash"))
    assert (WRITTEN.scheme, hashed.scheme) == ("gpart-v1", "gpart-hash-v1")
    assert read_manifest(hashed.to_dict(), "a.json") == hashed


def test_an_older_formats_default_stands_for_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORMAT", 2)
    monkeypatch.setitem(module._OLDER_DEFAULTS, 1, {"dropout": 0.25})
    config = {key: value for key, value in CONFIG.to_dict().items() if key != "dropout"}
    assert read_manifest(of_a_file(config=config, format=1), "a.json").config.dropout == 0.25
    assert read_manifest(of_a_file(config=config, format=2), "a.json").config.dropout == 0.0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"config": {**CONFIG.to_dict(), "rank": 4}}, r"settings that this version does not know, unknown \['rank'\]"),
        ({"signs": "both"}, "the key 'signs', which this version does not know"),
        ({"format": FORMAT + 1}, f"of format {FORMAT + 1}; this version knows 1 to {FORMAT}"),
        ({"format": True}, "of format True"),
        ({"format": "1"}, "of format '1'"),
        (
            {"scheme": "gpart-v2"},
            "scheme 'gpart-v2'; this version knows 'gpart-v1', 'gpart-hash-v1', 'gpart-fastfood-v1'",
        ),
        ({"scheme": ["gpart-v1"]}, r"scheme \['gpart-v1'\]; this version knows"),
        ({"scheme": "gpart-hash-v1"}, "scheme 'gpart-hash-v1', but its projection='partition' is 'gpart-v1'"),
        (
            {"config": {**CONFIG.to_dict(), "projection": "hash"}},
            "'gpart-v1', but its projection='hash' is 'gpart-hash-v1'",
        ),
        ({"config": {"target_modules": ["q"]}}, r"lacks settings, missing \['d'\]"),
    ],
)
def test_what_this_version_does_not_know_is_refused_with_the_version_that_wrote_it(
    changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(GPartError, match=rf"^a\.json .*{said}.*gpart 9\.9 wrote it"):
        read_manifest(of_a_file(**changed), "a.json")


@pytest.mark.parametrize("versions", [{}, [], "1", {"gpart": ""}])
def test_a_file_that_does_not_say_who_wrote_it_is_refused_all_the_same(versions: Any) -> None:
    with pytest.raises(GPartError, match="an unknown version of gpart wrote it"):
        read_manifest({**of_a_file(), "versions": versions, "signs": 1}, "a.json")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (None, "holds NoneType"),
        (of_a_file(scheme=None), "it needs .*'scheme'"),
        (of_a_file(config={**CONFIG.to_dict(), "projection": "dct"}), "a.json: projection must be one of .* got 'dct'"),
        ([1], "holds list"),
        ({"d": 1}, r"holds \['d'\]"),
        (of_a_file(base=None), "it needs .*'base'"),
        (of_a_file(config=[]), "no settings under 'config'"),
        (of_a_file(name=5), "an adapter's name must be a text, got 5"),
        (of_a_file(config={**CONFIG.to_dict(), "d": 0}), "a.json: d must be a whole number, 1 or more, got 0"),
    ],
)
def test_what_is_no_manifest_is_told(values: Any, said: str) -> None:
    with pytest.raises(GPartError, match=said):
        read_manifest(values, "a.json")


FACTS = About(
    base="packaged:minilm",
    model_class="BertForSequenceClassification",
    task="classification",
    labels=["no", "yes"],
    inputs={"max_length": 64},
    score={"step": 75, "monitor": "val/accuracy", "value": 0.91},
)


def test_facts_are_read_as_they_were_written() -> None:
    told = replace(WRITTEN, about=FACTS)
    assert read_manifest(told.to_dict(), "a file") == told
    assert read_manifest(json.loads(json.dumps(told.to_dict())), "a file").about == FACTS


def test_a_file_without_facts_says_nothing() -> None:
    assert "about" not in WRITTEN.to_dict()
    assert read_manifest(WRITTEN.to_dict(), "a file").about == About()


def test_format_1_stays_readable_by_what_knows_no_facts() -> None:
    assert "about" not in replace(WRITTEN, about=FACTS, format=1).to_dict()


def test_a_fact_of_a_later_version_is_left_out() -> None:
    values = {**WRITTEN.to_dict(), "about": {"task": "regression", "colour": "blue"}}
    assert read_manifest(values, "a file").about == About(task="regression")


@pytest.mark.parametrize(
    ("about", "says"),
    [
        (["classification"], "about must be an object, got"),
        ({"labels": "no, yes"}, "labels must be a list, got 'no, yes'"),
        ({"labels": ["no", 1]}, "labels must be texts, got"),
        ({"base": 5}, "base must be a str, got 5"),
        ({"score": None}, "score must be a dict, got None"),
    ],
)
def test_facts_of_another_kind_are_refused(about: object, says: str) -> None:
    with pytest.raises(GPartError, match=f"a file: {re.escape(says)}"):
        read_manifest({**WRITTEN.to_dict(), "about": about}, "a file")


def test_facts_go_over_others_where_there_are_any() -> None:
    other = About(base="x", task="regression", inputs={"size": 1})
    assert About(task="classification").over(other) == replace(other, task="classification")
