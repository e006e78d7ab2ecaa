"""``gpart combine``: one adapter of several, by arithmetic on theta."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gpart.arithmetic import Stored, combine, norm, read
from gpart.arithmetic.heads import Heads
from gpart.arithmetic.merging import COMBINATION_TYPES, DROPPING, ELECTING, MAJORITY_SIGN_METHODS
from gpart.cli.adapters import ADAPTER, check_output, console, facts, summary
from gpart.cli.message import Parser
from gpart.errors import GPartError

DESCRIPTION = f"""Adds up adapters of one layout (same weights, d, seed and scheme), each multiplied by its coefficient, and writes
the sum as an adapter folder. Updates are linear in theta, so the sum is exact except for one rounding.

ADAPTER is {ADAPTER}"""

EPILOG = """examples:
  gpart combine runs/both --adapter runs/a=0.5 --adapter runs/b=0.5
  gpart combine runs/without --adapter runs/a=1 --adapter runs/toxic=-1 --heads runs/a
  gpart combine runs/ties --adapter runs/a=1 --adapter runs/b=1 --combination-type ties --density 0.3"""


def combine_command(words: list[str]) -> int:
    """Writes the combined adapter, and prints what it is.

    Raises:
        GPartError: if adapters do not fit together, a setting is wrong, or something is in the folder already.
    """
    parser = _parser()
    asked = parser.parse_args(words)
    takes = {"majority_sign_method": asked.combination_type in ELECTING, "seed": asked.combination_type in DROPPING}
    if idle := parser.given(words, [name for name, taken in takes.items() if not taken]):
        raise GPartError(f"gpart combine --combination-type {asked.combination_type} takes no {idle[0]}")
    pairs = [parse_adapter(text) for text in asked.adapter]
    check_output(asked.out, asked.force)
    adapters = [(read(source), coefficient) for source, coefficient in pairs]
    made = combine(
        adapters,
        asked.combination_type,
        density=asked.density,
        majority_sign_method=asked.majority_sign_method,
        seed=asked.seed,
        heads=_heads(asked.heads, [adapter for adapter, _ in adapters]),
        name=asked.name,
        check_base=not asked.no_check_base,
    )
    made.save(asked.out)
    known: dict[str, Any] = {
        "written": asked.out,
        "adapters": [
            {"adapter": adapter.source, "coefficient": value, "norm": norm(adapter)} for adapter, value in adapters
        ],
        "combination_type": asked.combination_type,
        "norm": norm(made),
        "saved": sorted(made.heads),
    }
    if asked.json:
        print(json.dumps(known, indent=2, ensure_ascii=False))
        return 0
    rows = {"written": asked.out}
    for number, each in enumerate(known["adapters"]):
        rows["of" if not number else " " * number] = (
            f"{each['coefficient']:g} x {each['adapter']} (norm {each['norm']:.6g})"
        )
    console().print(facts({**rows, "by": asked.combination_type, **summary(made)}))
    return 0


def parse_adapter(text: str) -> tuple[str, float]:
    """An adapter with its coefficient, which stands after the last ``=``.

    Raises:
        GPartError: if there is no number.

    Example:
        >>> parse_adapter("runs/lr=0.1/adapter=-0.5")
        ('runs/lr=0.1/adapter', -0.5)
    """
    source, _, number = text.rpartition("=")
    try:
        coefficient = float(number)
    except ValueError:
        coefficient = None
    if coefficient is None or not source:
        raise GPartError(f"--adapter takes ADAPTER=COEFFICIENT, such as runs/a=0.5, got {text!r}")
    if Path(text).exists() and not Path(source).exists():
        raise GPartError(f"--adapter {text} has no coefficient: give {text}=1, or what it is to be multiplied with")
    return source, coefficient


def _heads(given: str | None, adapters: list[Stored]) -> Heads:
    if given is None:
        return None
    if given == "combine":
        return "combine"
    for number, adapter in enumerate(adapters):
        if adapter.source == given:
            return number
    raise GPartError(
        f"--heads must be 'combine' or one of the adapters as it was given, {[adapter.source for adapter in adapters]}, got"
        f" {given!r}"
    )


def _parser() -> Parser:
    parser = Parser(
        prog="gpart combine",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--adapter",
        action="append",
        required=True,
        metavar="ADAPTER=X",
        help="an adapter and its coefficient; several times, added in this order",
    )
    parser.add_argument(
        "--combination-type",
        choices=COMBINATION_TYPES,
        default="linear",
        help="how they are combined, in PEFT's terms; default: %(default)s",
    )
    parser.add_argument(
        "--density", type=float, metavar="P", help="the fraction of theta's entries that is kept, for all but linear"
    )
    parser.add_argument(
        "--majority-sign-method",
        choices=MAJORITY_SIGN_METHODS,
        default="total",
        help="how TIES elects a sign; default: %(default)s",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", default=0, help="the seed for what DARE drops; default: %(default)s"
    )
    parser.add_argument(
        "--heads",
        metavar="HEADS",
        help="saved modules and buffers: 'combine' (coefficients must add up to 1), or an adapter, to take its own; default:"
        " they must be equal",
    )
    parser.add_argument("--name", help="the new adapter's name; default: the first's")
    parser.add_argument("--no-check-base", action="store_true", help="combine even if the bases seem to differ")
    parser.add_argument("--force", action="store_true", help="write to OUT even if it is not empty")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser
