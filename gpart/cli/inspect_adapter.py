"""``gpart inspect``: what an adapter is, and how far it moves each layer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from gpart.arithmetic import Stored, norm, norm_by_weight, read
from gpart.cli.adapters import (
    ADAPTER,
    MOST_ROWS,
    bars_of,
    by_layer,
    console,
    facts,
    head_rows,
    printable,
    sheet,
    shortened,
)
from gpart.cli.message import Parser
from gpart.config import GPartConfig
from gpart.serialization.folder import BESIDE_BASE, CONFIG, TENSORS
from gpart.serialization.locations import located
from gpart.serialization.sources import checkpoint_of

DESCRIPTION = """Shows an adapter without its model: settings, base, sizes, saved modules, versions, and the norm of its
update in each adapted weight, by layer where there are many."""

_USUAL = GPartConfig(d=1, target_modules=["x"]).to_dict()


def inspect_command(words: list[str]) -> int:
    """Prints the tables, or the same as JSON.

    Raises:
        GPartError: if there is no adapter, or it was changed.
    """
    parser = Parser(prog="gpart inspect", description=DESCRIPTION)
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER)
    parser.add_argument("--all", action="store_true", help="show every weight separately, however many there are")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    asked = parser.parse_args(words)
    stored = read(asked.adapter)
    if asked.json:
        print(json.dumps(content(stored), indent=2, ensure_ascii=False))
        return 0
    _print(stored, asked.all)
    return 0


def content(stored: Stored) -> dict[str, Any]:
    """All that is shown, as plain values."""
    manifest, theta = stored.manifest, stored.theta.double()
    length = norm(stored)
    return {
        "adapter": stored.source,
        "name": manifest.name,
        "format": manifest.format,
        "scheme": manifest.scheme,
        "config": manifest.config.to_dict(),
        "base": manifest.base,
        "about": manifest.about.to_dict(),
        "D": manifest.size,
        "d": manifest.config.d,
        "theta_norm": float(theta.norm()),
        "theta_largest": float(theta.abs().max()),
        "update_norm": length,
        "update_rms": length / math.sqrt(manifest.size),
        "update_norm_by_weight": norm_by_weight(stored),
        "weights": {weight.name: list(weight.shape) for weight in stored.layout.weights},
        "saved": {
            name: {
                "shape": list(value.shape),
                "dtype": str(value.dtype).removeprefix("torch."),
                "bytes": value.numel() * value.element_size(),
            }
            for name, value in sorted(stored.heads.items())
        },
        "versions": manifest.versions,
        "files": files(stored.source),
    }


def files(source: str) -> dict[str, int]:
    """The bytes of an adapter's local files by name; nothing of what lies elsewhere, which has no size to ask for."""
    file = checkpoint_of(source)
    at = located(source if file is None else file[0])
    if not isinstance(at, Path):
        return {}
    if at.is_file():
        return {at.name: at.stat().st_size}
    folder = next((each for each in (at, at / BESIDE_BASE) if (each / CONFIG).is_file()), at)
    return {name: (folder / name).stat().st_size for name in (TENSORS, CONFIG) if (folder / name).is_file()}


def _print(stored: Stored, every: bool) -> None:
    known, where = content(stored), console()
    where.print(facts({name: value for name, value in _about(known).items() if value}))
    where.print(_chart(known["update_norm_by_weight"], known["update_norm"], every, where))
    if stored.heads:
        saved = Table(box=None, title="stored in full", title_justify="left", title_style="bold", show_header=False)
        for name, value in head_rows(stored).items():
            saved.add_row(printable(name), value)
        where.print(saved)


def _about(known: dict[str, Any]) -> dict[str, str]:
    settings = {
        key: value for key, value in known["config"].items() if key not in ("d", "seed") and value != _USUAL[key]
    }
    return {
        "adapter": f"{known['name']} in {known['adapter']}",
        "projection": f"{known['scheme']}, seed {known['config']['seed']}, format {known['format']}",
        **{key: " ".join(value) if isinstance(value, list) else str(value) for key, value in settings.items()},
        **_told(known["about"]),
        "base's fingerprint": f"{known['base'][:16]}...",
        "D": f"{known['D']:,} in {len(known['weights'])} weights",
        "d": f"{known['d']:,} ({known['D'] / known['d']:,.1f} weights to each number)",
        "norm of theta": f"{known['theta_norm']:.6g} (largest number {known['theta_largest']:.3g})",
        "norm of the update": f"{known['update_norm']:.6g} (rms {known['update_rms']:.3g})",
        "files": ", ".join(f"{name} {decimal(size)}" for name, size in known["files"].items()),
        "written by": ", ".join(f"{name} {version}" for name, version in known["versions"].items()),
    }


def _told(about: dict[str, Any]) -> dict[str, str]:
    """What the adapter's file says for people; rows without a text are left out."""
    kind, score = about.get("model_class"), about.get("score", {})
    value = f", {score['monitor']} {score['value']:.6g}" if {"monitor", "value"} <= set(score) else ""
    return {
        "base": f"{about.get('base', 'not named')}{f', a {kind}' if kind else ''}",
        "task": about.get("task", ""),
        "labels": ", ".join(about.get("labels", ())),
        "inputs": ", ".join(f"{name} {value}" for name, value in about.get("inputs", {}).items()),
        "score": f"step {score['step']:,}{value}" if "step" in score else "",
    }


def _chart(norms: dict[str, float], whole: float, every: bool, where: Console) -> Table:
    """The norms with their shares of the squared norm, and bars."""
    shown = norms if every or len(norms) <= MOST_ROWS else by_layer(norms)
    what = "weight" if shown is norms else "layer"
    pattern, names = shortened(shown)
    title = f"norm of the update by {what}{': ' + printable(pattern) if pattern else ''}"
    table = sheet(what, "norm", "share", title=title, bars=True)
    taken = max(12, *map(len, names)) + 27  # two numbers, and what stands between columns
    for name, value, drawn in zip(names, shown.values(), bars_of(shown.values(), where, taken), strict=True):
        table.add_row(printable(name), f"{value:.4g}", f"{value**2 / whole**2 if whole else 0:.1%}", drawn)
    return table
