"""The figure: each method's singular values, and along runs how far the weights moved for how far theta did.

Invariant: what is drawn are the JSON's numbers. Matplotlib's ``Figure`` alone is used, so that the user's pyplot stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpart.studies.isometry.measuring import Row
from gpart.studies.isometry.spectrum import POINTS

_GPART = "#c8553d"
"""As in the bench's figures, nothing else has it."""

_STYLES = ("-", ":", "--", "-.")
"""Of the runs of one method, which have one colour."""

Style = dict[str, Any]


def isometry_figure(rows: Sequence[Row], title: str) -> Figure:
    """Singular values over the part of directions below them; with runs also ratio and distance over the steps."""
    trained = [row for row in rows if len(row.path) > 1]
    panels = 3 if trained else 1
    figure = Figure(figsize=(5.6 * panels + 2.2, 4.8), layout="constrained", dpi=130)
    axes = list(figure.subplots(1, panels, squeeze=False).flat)
    styles = _styles(rows)
    for row in rows:
        _draw_spectrum(axes[0], row, styles[row.name])
    axes[0].set(
        yscale="log", xlim=(0, 1), xlabel="part of all directions of theta", ylabel="singular value of dW / dtheta"
    )
    axes[0].axhline(1.0, color="#222222", linewidth=0.8, linestyle=(0, (4, 3)))
    axes[0].set_title("at the end, and thin at the start" if trained else "at the start", fontsize=10.5, loc="left")
    if trained:
        _draw_path(axes[1], axes[2], trained, styles)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def _styles(rows: Sequence[Row]) -> dict[str, Style]:
    """Each row's colour, by its method, and its line, by its place among the method's rows."""
    methods = list(dict.fromkeys(row.method for row in rows))
    others = [method for method in methods if method != "gpart"]
    palette = colormaps["tab10"]
    colours = {"gpart": _GPART, **{method: palette(place % 10) for place, method in enumerate(others)}}
    found: dict[str, Style] = {}
    seen: Counter[str] = Counter()
    for row in rows:
        line = _STYLES[seen[row.method] % len(_STYLES)]
        found[row.name] = {"color": colours[row.method], "linestyle": line}
        seen[row.method] += 1
    return found


def _draw_spectrum(axes: Axes, row: Row, style: Style) -> None:
    at = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    for place, end in enumerate(row.ends):
        values = end.spectrum.quantiles(at)
        shown = torch.where(values < end.spectrum.least, torch.nan, values)  # a log axis has no place for zeros
        last = place == len(row.ends) - 1
        zeros = f", {100 * end.spectrum.zeros:.2g} % are 0" if end.spectrum.zeros else ""
        thick = (
            {"linewidth": 3.0 if row.method == "gpart" else 1.6, "label": f"{row.name}{zeros}"}
            if last
            else {"linewidth": 0.8, "alpha": 0.6}
        )
        axes.plot(at.tolist(), shown.tolist(), **style, **thick)


def _draw_path(ratios: Axes, distances: Axes, rows: Sequence[Row], styles: dict[str, Style]) -> None:
    for row in rows:
        moved = [(one.step, one.ratio) for one in row.path if one.ratio is not None]
        ratios.plot([step for step, _ in moved], [ratio for _, ratio in moved], **styles[row.name])
        away = [(one.step, one.base) for one in row.path if one.base]  # a log axis has no place for 0
        distances.plot([step for step, _ in away], [base for _, base in away], **styles[row.name])
    for axes, label in ((ratios, "‖ΔW‖ / ‖Δtheta‖ from the start"), (distances, "‖W - W0‖")):
        axes.set(yscale="log", xlabel="step", ylabel=label)
    ratios.axhline(1.0, color="#222222", linewidth=0.8, linestyle=(0, (4, 3)))
    ratios.set_title("how far the weights went for theta", fontsize=10.5, loc="left")
    distances.set_title("how far they are from the base", fontsize=10.5, loc="left")
