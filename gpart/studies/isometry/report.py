"""The measurements as tables and as JSON.

Invariant: every number of a table stands in the JSON, in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gpart.studies.bench.report import Sheet, describe
from gpart.studies.isometry.measuring import Moved, Row, Settings

_JACOBIAN = (
    "Singular values of the Jacobian from the trainable vector, without the head, to the adapted weights. Zero: the part of"
    " its directions that move no weight; least: the smallest of the others. By Lanczos the largest is at least that (≥), and what else there is in its row is an estimate (≈)."
)
_DECAY = (
    "Random step: ‖J·x‖ / ‖x‖ of random x by products with J, which rms has to agree with. Degree: one decay step of AdamW, theta to (1 - ηλ)·theta, takes ‖W - W0‖ to (1 - ηλ)^degree of it. Pull: degree / rms, how"
    " strong the same λ is beside a step that moves the weights as far as GPart's."
)
_PATH = (
    "Distances at the end, in float64: of theta and of W from the start, and of W from the base. Ratio: ‖ΔW‖ / ‖Δtheta‖ at the"
    " first point after the start and at the last; one number throughout is an isometry up to that factor."
)


def sheets(rows: Sequence[Row]) -> list[Sheet]:
    """The tables of what was measured."""
    tables = [_jacobian(rows), _decay(rows)]
    if any(len(row.path) > 1 for row in rows):
        tables.append(_along(rows))
    return tables


def about(title: str, machine: dict[str, Any], command: str) -> list[str]:
    """What was measured, where and when, one fact a line."""
    return [f"# {title}", "", f"- command: `{command}`", *describe(machine)]


def content(rows: Sequence[Row], settings: Settings, machine: dict[str, Any], command: str) -> dict[str, Any]:
    """The JSON."""
    return {
        "command": command,
        "machine": machine,
        "settings": asdict(settings),
        "rows": [row.to_json() for row in rows],
    }


def _jacobian(rows: Sequence[Row]) -> Sheet:
    header = ["method", "step", "zero", "least", "rms", "largest", "largest / least"]
    lines = []
    for row in rows:
        for end in row.ends:
            found = end.spectrum
            about, high = ("≈ ", "≥ ") if found.how == "Lanczos" else ("", "")
            values = [about + number(found.least), number(found.rms), high + number(found.largest)]
            condition = f"{about}{number(found.condition)}" if found.least else "-"
            lines.append([row.name, f"{end.step:,}", f"{100 * found.zeros:.1f} %", *values, condition])
    return Sheet("the Jacobian", header, lines, _JACOBIAN)


def _decay(rows: Sequence[Row]) -> Sheet:
    lines = []
    for row in rows:
        end = row.ends[-1]
        by = end.spectrum.how
        lines.append([row.name, f"{row.trained:,}", by, number(end.stretch), f"{row.degree:.3f}", number(row.pull)])
    return Sheet(
        "how it was measured, and a decay step",
        ["method", "trained", "singular values by", "random step", "degree", "pull"],
        lines,
        _DECAY,
    )


def _along(rows: Sequence[Row]) -> Sheet:
    header = ["method", "weight decay", "‖Δtheta‖", "‖ΔW‖", "first ratio", "last ratio", "‖W - W0‖"]
    lines = []
    for row in rows:
        last: Moved = row.path[-1]
        ratios = [number(one.ratio) for one in row.path if one.ratio is not None] or ["-"]
        decay = f"{row.training['weight_decay']:g}" if "weight_decay" in row.training else "-"
        distances = [number(last.vector), number(last.weights)]
        lines.append([row.name, decay, *distances, ratios[0], ratios[-1], number(last.base)])
    return Sheet("along the run", header, lines, _PATH)


def number(value: float) -> str:
    """Four digits of it.

    Example:
        >>> number(1.0), number(15.178932), number(0.0), number(0.00012345)
        ('1.000', '15.18', '0', '1.234e-04')
    """
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:#.4g}".rstrip(".")
    return f"{value:.3e}"
