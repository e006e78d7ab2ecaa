"""The landscapes of several runs as a table and as JSON.

Invariant: every number of the table, the figure and the page can be computed again from the JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gpart.studies.experiments.tables import markdown_table
from gpart.studies.landscape.settings import Settings
from gpart.studies.landscape.summary import Landscape, summary

_ROWS = [
    *(
        "run",
        "checkpoint",
        "method",
        "trained numbers, d",
        "norm of theta*",
        "norm of its change",
        "loss at theta*",
        "lowest loss, and where",
    ),
    *("highest loss", "area within +10 %", "asymmetry", "anisotropy", "top eigenvalue", "curvature"),
]

NOTE = """Losses are of the mean over the direction seeds. A direction's norm is {radius}, and the grid goes to {span:g} of it. Area:
share of the square where the loss is at most 1.1 times the trained point's. Asymmetry: 0 where opposite directions are
alike. Anisotropy: 0 where the loss rises alike in all directions of the plane; both with their range over the seeds. Top
eigenvalue: of the Hessian in the trained vector, with its error, as far as the residual and the dtype's
rounding tell it; curvature is that times the squared norm of
the directions, which stays the same when theta is measured in other units."""


def as_json(landscapes: Sequence[Landscape], settings: Settings, about: dict[str, Any]) -> dict[str, Any]:
    """Everything, as plain values; a loss that overflowed is None."""
    return {
        **about,
        "settings": asdict(settings),
        "coordinates": settings.coordinates(),
        "runs": [
            {
                "name": one.name,
                "checkpoint": one.checkpoint,
                **one.facts,
                "radius": one.radius,
                "summary": summary(one),
                "ritz_values": [list(pair) for pair in one.eigenvalues],
                "surfaces": [_plain(surface) for surface in one.surfaces],
            }
            for one in landscapes
        ],
    }


def table(landscapes: Sequence[Landscape]) -> list[list[str]]:
    """A column for each run; the first line are their names."""
    columns = [_ROWS, *(_column(one, summary(one)) for one in landscapes)]
    return [list(line) for line in zip(*columns, strict=True)]


def markdown(landscapes: Sequence[Landscape], settings: Settings, command: str) -> str:
    """The table to read, with what its columns are."""
    radius = "that of the trained vector" if settings.scale == "norm" else "that of the trained vector's change"
    parts = [
        "# Landscapes",
        f"    {command}",
        markdown_table(table(landscapes)),
        NOTE.format(radius=radius, span=settings.span),
    ]
    return "\n\n".join(parts) + "\n"


def cautions(landscapes: Sequence[Landscape]) -> list[str]:
    """What makes the runs less comparable than the picture looks."""
    found = []
    if len({one.facts["data"] for one in landscapes}) > 1:
        sizes = ", ".join(f"{one.name}: {one.facts['rows']}" for one in landscapes)
        found.append(f"the runs were evaluated on different validation rows ({sizes}): their losses do not compare")
    found += [
        f"{one.name} trains its head alone, and that is what its landscape is of"
        for one in landscapes
        if one.facts["of_head"]
    ]
    return found


def _column(one: Landscape, found: dict[str, Any]) -> list[str]:
    facts = one.facts
    top = f"{found['eigenvalues'][0][0]:.3g} ± {found['eigenvalues'][0][1]:.1g}" if found["eigenvalues"] else "-"
    return [
        one.name,
        one.checkpoint,
        facts["method"],
        f"{facts['d']:,}",
        f"{facts['norm']:.3g}",
        f"{facts['change']:.3g}",
        _number(found["loss"], ".4f"),
        _minimum(found),
        _number(found["highest"], ".4f"),
        "-" if found["area"] is None else f"{100 * found['area']:.1f} %",
        _spread(found["asymmetry"]),
        _spread(found["anisotropy"]),
        top,
        _number(found["curvature"], ".3g"),
    ]


def _minimum(found: dict[str, Any]) -> str:
    where = ", ".join(f"{value:g}" for value in found["minimum_at"])
    return "-" if found["minimum"] is None else f"{found['minimum']:.4f} ({where})"


def _spread(found: dict[str, Any]) -> str:
    if found["mean"] is None:
        return "-"
    return f"{found['mean']:.2f} ({min(found['seeds']):.2f} to {max(found['seeds']):.2f})"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _plain(surface: Any) -> list[list[float | None]]:
    return [[float(value) if np.isfinite(value) else None for value in row] for row in surface]
