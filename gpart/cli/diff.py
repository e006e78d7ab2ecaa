"""``gpart diff``: two adapters side by side."""

from __future__ import annotations

import json
from typing import Any

from gpart.arithmetic import Comparison, Stored, compare, read
from gpart.arithmetic.heads import heads_distance
from gpart.arithmetic.measures import Moments
from gpart.arithmetic.stored import check_same_base
from gpart.cli.adapters import (
    ADAPTER,
    MOST_ROWS,
    bars_of,
    console,
    facts,
    layer_of,
    printable,
    sheet,
    shortened,
)
from gpart.cli.message import Parser
from gpart.errors import GPartError
from gpart.injection.tensors import same_bits

DESCRIPTION = """Compares two adapters without their model: the settings that differ, the weights that only one adapts, the
distance and the cosine of their updates in all and in each weight (by layer where there are many), and the distance of what
they store in full. Other seeds, d and targets are compared weight by weight, as the updates of one base."""


def diff_command(words: list[str]) -> int:
    """Prints the tables, or the same as JSON.

    Raises:
        GPartError: if one is no adapter, or a weight has another shape in the other.
    """
    parser = Parser(prog="gpart diff", description=DESCRIPTION)
    parser.add_argument("first", metavar="A", help=ADAPTER)
    parser.add_argument("second", metavar="B", help="the other")
    parser.add_argument("--all", action="store_true", help="show every weight separately, however many there are")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    asked = parser.parse_args(words)
    first, second = read(asked.first), read(asked.second)
    made = compare(first, second, check_base=False)  # that bases differ is a part of the answer
    known = content(first, second, made)
    if asked.json:
        print(json.dumps(known, indent=2, ensure_ascii=False))
        return 0
    _print(known, made, asked.all)
    return 0


def content(first: Stored, second: Stored, made: Comparison) -> dict[str, Any]:
    """All that is shown, as plain values."""
    mine, its = ([weight.name for weight in each.layout.weights] for each in (first, second))
    heads = heads_distance(first, second)
    return {
        "first": first.source,
        "second": second.source,
        "same_base": not _base_note(first, second),
        "base_note": _base_note(first, second),
        "same_layout": first.layout == second.layout,
        "layout": first.layout.differences(second.layout),
        "settings": _settings(first, second),
        "weights_only_in_first": [name for name in mine if name not in its],
        "weights_only_in_second": [name for name in its if name not in mine],
        "whole": _numbers(made.whole),
        "by_weight": {name: _numbers(moments) for name, moments in made.by_weight.items()},
        "saved": {
            name: {
                "only_in": None if name in first.heads and name in second.heads else _holder(name, first),
                "distance": distance,
                "equal": name in first.heads
                and name in second.heads
                and same_bits(first.heads[name], second.heads[name]),
            }
            for name, distance in heads.items()
        },
    }


def _settings(first: Stored, second: Stored) -> dict[str, list[Any]]:
    """By name both values of what differs in the manifests, but for sizes that follow from it."""
    one, other = first.manifest, second.manifest
    pairs = {key: [getattr(one, key), getattr(other, key)] for key in ("name", "scheme", "format")}
    mine, its = one.config.to_dict(), other.config.to_dict()
    pairs |= {"D": [one.size, other.size], **{key: [mine[key], its[key]] for key in mine}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _base_note(first: Stored, second: Stored) -> str:
    """Why the bases are not known to be one; empty where they are."""
    try:
        check_same_base(first, second)
    except GPartError as error:
        return str(error).removesuffix(". check_base=False takes them for one")
    return ""


def _holder(name: str, first: Stored) -> str:
    return "first" if name in first.heads else "second"


def _numbers(moments: Moments) -> dict[str, float]:
    return {
        "first_norm": moments.first**0.5,
        "second_norm": moments.second**0.5,
        "distance": moments.distance,
        "cosine": moments.cosine,
    }


def _print(known: dict[str, Any], made: Comparison, every: bool) -> None:
    where = console()
    whole = made.whole
    about = {"A": known["first"], "B": known["second"]}
    about["base"] = "the same" if known["same_base"] else f"not known to be the same: {known['base_note']}"
    about["layout"] = "the same: thetas can be added up" if known["same_layout"] else _layout(known)
    about["norms of the updates"] = f"{whole.first**0.5:.6g} and {whole.second**0.5:.6g}"
    about["distance"] = f"{whole.distance:.6g}"
    about["cosine"] = f"{whole.cosine:.6f}"
    where.print(facts(about))
    if known["settings"]:
        settings = sheet("settings that differ", "A", "B")
        for column in settings.columns[1:]:
            column.justify, column.no_wrap, column.overflow = "left", False, "fold"
        for name, (mine, its) in known["settings"].items():
            settings.add_row(name, printable(str(mine)), printable(str(its)))
        where.print(settings)
    rows = _rows(made, every)
    what = "weight" if rows is made.by_weight else "layer"
    pattern, names = shortened(rows)
    title = f"updates by {what}{': ' + printable(pattern) if pattern else ''}"
    table = sheet(what, "norm A", "norm B", "distance", "cosine", title=title, bars=True)
    # Four numbers, and what stands between columns.
    drawn = bars_of((moments.distance for moments in rows.values()), where, max(12, *map(len, names)) + 50)
    for name, moments, line in zip(names, rows.values(), drawn, strict=True):
        norms = [f"{value**0.5:.4g}" if value else "-" for value in (moments.first, moments.second)]
        cosine = "-" if "-" in norms else f"{moments.cosine:.4f}"
        table.add_row(printable(name), *norms, f"{moments.distance:.4g}", cosine, line)
    where.print(table)
    if known["saved"]:
        saved = sheet("stored in full", "distance")
        for name, value in sorted(known["saved"].items()):
            saved.add_row(printable(name), _told(value))
        where.print(saved)


def _layout(known: dict[str, Any]) -> str:
    """What differs, with weights by their number: the table has their names."""
    counts = [
        f"{len(known[f'weights_only_in_{which}'])} weights are only in {letter}"
        for which, letter in (("first", "A"), ("second", "B"))
        if known[f"weights_only_in_{which}"]
    ]
    return "; ".join([*(line for line in known["layout"] if not line.startswith("only ")), *counts])


def _told(saved: dict[str, Any]) -> str:
    if saved["only_in"]:
        return f"only in {'A' if saved['only_in'] == 'first' else 'B'}"
    if saved["equal"]:
        return "equal"
    return "other shapes" if saved["distance"] is None else f"{saved['distance']:.4g}"


def _rows(made: Comparison, every: bool) -> dict[str, Moments]:
    """The weights, or their sums by layer where there are many."""
    if every or len(made.by_weight) <= MOST_ROWS:
        return made.by_weight
    found: dict[str, Moments] = {}
    for name, one in made.by_weight.items():
        so_far = found.get(layer_of(name), Moments(0.0, 0.0, 0.0, 0.0))
        pairs = (
            (getattr(so_far, field), getattr(one, field)) for field in ("first", "second", "product", "difference")
        )
        found[layer_of(name)] = Moments(*(a + b for a, b in pairs))
    return found
