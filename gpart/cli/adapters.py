"""What the commands on stored adapters share: where the result goes, bars, and lists that are too long to be shown.

Invariant: nothing that is there is overwritten unless that was asked for, and what is printed fits the terminal. Nothing
here needs Lightning or Transformers, which would take longer to import than the commands take.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from gpart.arithmetic import Stored, norm
from gpart.errors import GPartError
from gpart.serialization.folder import CONFIG
from gpart.serialization.locations import inside, is_file, located

ADAPTER = "an adapter: a folder, a checkpoint (FILE.ckpt, or FILE.ckpt:NAME of several), or a name on the hub"

MOST_ROWS = 48
"""Weights that are shown each by itself; more are put together by layer."""

_BAR, _LEAST_BAR = 24, 6
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def check_named(out: str) -> None:
    """Checks that OUT is not empty, as an unset variable of the shell is: ``Path("")`` is the current folder.

    Raises:
        GPartError: if it is.
    """
    if not out.strip():
        raise GPartError("OUT must name a folder, got ''")


def check_output(folder: str, force: bool) -> None:
    """Checks that a folder can be written to.

    Raises:
        GPartError: if none is named, something is in it and that was not said to be replaced, or it is a file.
    """
    check_named(folder)
    at = located(folder)
    if isinstance(at, Path):
        if at.exists() and not at.is_dir():
            raise GPartError(f"{at} is a file, not a folder to write an adapter to")
        taken = at.is_dir() and any(at.iterdir())
    else:
        taken = is_file(inside(at, CONFIG))
    if taken and not force:
        raise GPartError(f"{at} is not empty: give --force to write the adapter there, or another folder")


def console() -> Console:
    """Where tables go."""
    return Console(highlight=False, markup=False)


def facts(rows: Mapping[str, str]) -> Table:
    """Names and values in two columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(printable(name), printable(value))
    return table


def sheet(first: str, *columns: str, title: str | None = None, bars: bool = False) -> Table:
    """A table with names in its first column and numbers in the others; with ``bars``, bars in the last."""
    table = Table(box=SIMPLE, title=title, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold", min_width=12)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    if bars:
        table.add_column("", no_wrap=True)
    return table


def bars_of(values: Iterable[float], where: Console, taken: int) -> list[str]:
    """A bar for each value, the longest for the largest; in plain ASCII where the terminal has nothing else.

    Args:
        values: 0 or more.
        where: the terminal.
        taken: characters of a row that other columns need; what is left is for bars, if it is enough for any.
    """
    given, width = list(values), min(_BAR, where.width - taken)
    return [bar(value, max(given), width, _is_plain(where)) if width >= _LEAST_BAR else "" for value in given]


def shortened(names: Iterable[str]) -> tuple[str, list[str]]:
    """Names without the path and the ending that they share, and a pattern that has both.

    Example:
        >>> shortened(["roberta.layer.0.query.weight", "roberta.layer.1.query.weight"])
        ('roberta.layer.*.query.weight', ['0', '1'])
        >>> shortened(["head.weight"]), shortened(["weight", "a.weight"])
        (('', ['head.weight']), ('', ['weight', 'a.weight']))
    """
    given = [name.split(".") for name in names]
    shortest = min(map(len, given))

    def shared(places: Iterable[int], most: int) -> int:
        alike = [len({parts[place] for parts in given}) == 1 for place in places]
        return min(most, alike.index(False) if False in alike else len(alike))

    # One part of each name is left.
    first = shared(range(shortest), shortest - 1) if len(given) > 1 else 0
    last = shared(range(-1, -shortest - 1, -1), shortest - 1 - first) if len(given) > 1 else 0
    left = [".".join(parts[first : len(parts) - last]) for parts in given]
    whole = given[0]
    pattern = ".".join([*whole[:first], "*", *whole[len(whole) - last :]]) if first or last else ""
    return pattern, left


def printable(text: str) -> str:
    r"""A text out of a file as it may be sent to a terminal: what is no character to be seen is written out.

    Example:
        >>> printable("layer.0\x1b[2J")
        'layer.0\\x1b[2J'
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def bar(value: float, longest: float, width: int, plain: bool = False) -> str:
    """A bar of at most ``width`` characters.

    Example:
        >>> bar(3.0, 4.0, 8), bar(1.0, 16.0, 8), bar(3.0, 4.0, 8, plain=True), bar(0.0, 0.0, 8)
        ('██████', '▌', '######', '')
    """
    share = value / longest if longest > 0 else 0.0
    if plain:
        return "#" * math.ceil(share * width)  # what is not 0 is seen
    eighths = math.ceil(share * width * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def by_layer(values: Mapping[str, float]) -> dict[str, float]:
    """Norms by weight as norms by layer, where a layer's name ends with the first number in it; others stay.

    Example:
        >>> by_layer({"h.0.query.weight": 3.0, "h.0.value.weight": 4.0, "head.weight": 1.0})
        {'h.0': 5.0, 'head.weight': 1.0}
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        layer = layer_of(name)
        found[layer] = math.hypot(found.get(layer, 0.0), value)
    return found


def layer_of(name: str) -> str:
    """The path to the first number in a weight's name, or the name.

    Example:
        >>> layer_of("encoder.layer.11.attention.query.weight"), layer_of("0.weight"), layer_of("head.weight")
        ('encoder.layer.11', '0', 'head.weight')
    """
    found = re.match(r"(?:.*?\.)?\d+(?=\.)", name)
    return found[0] if found else name


def summary(adapter: Stored) -> dict[str, str]:
    """The facts of an adapter that every command shows of its result."""
    config = adapter.manifest.config
    return {
        "d": f"{config.d:,}",
        "D": f"{adapter.manifest.size:,}",
        "seed": str(config.seed),
        "norm of the update": f"{norm(adapter):.6g}",
    }


def head_rows(adapter: Stored) -> dict[str, str]:
    """Shape, dtype and bytes of everything that an adapter holds besides theta."""
    return {
        name: f"{' x '.join(map(str, value.shape)) or 'one number'}  {str(value.dtype).removeprefix('torch.')}"
        f"  {decimal(value.numel() * value.element_size())}"
        for name, value in sorted(adapter.heads.items())
    }


def _is_plain(where: Console) -> bool:
    try:
        _EIGHTHS.encode(where.encoding)
    except (UnicodeEncodeError, LookupError):
        return True
    return where.options.ascii_only
