"""The picture: contours above, surfaces below, a column for each run.

Invariant: all runs share one scale of colours, contour levels and heights, so that what looks flatter is flatter.
As everywhere in this package, matplotlib's ``Figure`` alone is used, so that the user's pyplot stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from gpart.studies.landscape.summary import WITHIN, Array, Landscape, area

_LEVELS = 16
_COLOURS = "viridis"


def landscape_figure(landscapes: Sequence[Landscape], title: str) -> Figure:
    """Draws the mean surfaces of the runs side by side.

    Args:
        landscapes: the runs; at least one.
        title: what is said above all.
    """
    low, high = limits(landscapes)
    norm = PowerNorm(0.5, vmin=low, vmax=high)  # else a run that rises steeply would leave the others one colour
    levels = low + (high - low) * np.linspace(0, 1, _LEVELS) ** 2
    count = len(landscapes)
    figure = Figure(figsize=(3.9 * count + 0.9, 8.2), layout="constrained", dpi=130)
    drawn: Any = None
    above: list[Any] = []
    for index, one in enumerate(landscapes):
        surface, x = np.minimum(one.mean, high), one.coordinates
        flat: Any = figure.add_subplot(2, count, index + 1)
        # A surface's rows go along u, which is drawn to the right.
        drawn = flat.contourf(x, x, surface.T, levels=levels, norm=norm, cmap=_COLOURS)
        flat.contour(x, x, surface.T, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
        if one.facts["loss"] is not None:
            flat.contour(x, x, surface.T, levels=[WITHIN * one.facts["loss"]], colors="black", linewidths=1.4)
        flat.plot(0, 0, "+", color="black", markersize=9)
        flat.set_aspect("equal")
        flat.set(xlabel="along u", ylabel="along v" if index == 0 else "")
        flat.set_title(_caption(one), fontsize=10, parse_math=False)
        above.append(flat)
        solid: Any = figure.add_subplot(2, count, count + index + 1, projection="3d")
        solid.plot_surface(
            *np.meshgrid(x, x, indexing="ij"), surface, norm=norm, cmap=_COLOURS, rstride=1, cstride=1, linewidth=0
        )
        solid.set_zlim(low, high)
        solid.set(xlabel="along u", ylabel="along v")
        solid.tick_params(labelsize=7)
        solid.locator_params(nbins=4)
        solid.view_init(elev=28, azim=-58)
    figure.colorbar(drawn, ax=above, label="validation loss", shrink=0.85, ticks=levels[::3], format="%.3g")
    figure.suptitle(title, fontsize=10.5, parse_math=False)
    return figure


def limits(landscapes: Sequence[Landscape]) -> tuple[float, float]:
    """The lowest and the highest finite loss of all mean surfaces, apart from each other."""
    every: Array = np.concatenate([one.mean.ravel() for one in landscapes])
    finite = every[np.isfinite(every)]
    low = float(finite.min()) if len(finite) else 0.0
    high = float(finite.max()) if len(finite) else 1.0
    return low, high if high > low else low + 1e-6


def _caption(one: Landscape) -> str:
    within = area(one.mean, one.coordinates, one.facts["loss"])
    share = "" if within is None else f", {100 * within:.0f} % within +10 %"
    return f"{one.name}\nd = {one.facts['d']:,}, loss {_text(one.facts['loss'])}{share}"


def _text(loss: float | None) -> str:
    return "overflowed" if loss is None else f"{loss:.4f}"
