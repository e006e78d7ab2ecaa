"""The figure of a study whose rows are numbers: the score over them, with the spread of the seeds.

Invariant: what is drawn is what the table says. A row whose label is a number is a point of the curve, any other row (a
linear probe, full fine-tuning) is a horizontal line, and every seed's score is inside the band around either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from gpart.errors import GPartError
from gpart.studies.experiments.results import Results, scores_by_seed
from gpart.studies.experiments.study import Axis, Study, number_of

_CURVE = "#c8553d"
_LINES = (("#3d4852", "--"), ("#2a7f9e", "-."), ("#7a9a3a", ":"), ("#9467bd", (0, (1, 1))))
_LOGARITHMIC = 100
"""The ratio of the largest to the smallest number from which the axis is logarithmic."""
_COLUMNS = 3


@dataclass(frozen=True)
class Spread:
    """One row's scores in one column, scaled: the table's value, and the lowest and the highest of the seeds."""

    value: float
    lowest: float
    highest: float
    seeds: tuple[float, ...]


def number_axis(study: Study) -> Axis:
    """Returns the axis that the curve goes along: the only one beside the columns, with two or more numbers as labels.

    Raises:
        GPartError: if the study has no such axis.
    """
    numbers = [sum(number_of(value.label) is not None for value in axis.values) for axis in study.row_axes]
    if len(numbers) != 1 or numbers[0] < 2:
        found = ", ".join(f"{axis.name} with {count}" for axis, count in zip(study.row_axes, numbers, strict=True))
        raise GPartError(
            f"a figure is of a study with one axis beside the columns ({study.columns}), whose labels are numbers but for"
            f" those of its lines, two or more of them, such as d: {{1: ..., 10: ...}}; this one has {found or 'none'}"
        )
    return study.row_axes[0]


def curve_figure(results: Results) -> Figure:
    """Draws the scores over the numbers, a panel for each column. Rows without a finished run are left out.

    Raises:
        GPartError: if the study has no axis of numbers.
    """
    study, axis = results.study, number_axis(results.study)
    columns = study.column_axis.values
    wide = min(len(columns), _COLUMNS)
    deep = -(-len(columns) // wide)
    figure = Figure(figsize=(max(6.4, 4.8 * wide), 4.4 * deep), layout="constrained", dpi=130)
    panels = list(figure.subplots(deep, wide, squeeze=False).flat)
    for panel in panels[len(columns) :]:
        panel.remove()
    for panel, column in zip(panels, columns, strict=False):
        _draw(panel, axis, spreads(results, column.label))
        panel.set(xlabel=axis.name, ylabel=f"{column.metric} x {study.scale:g}", title=column.label)
    handles: dict[str, Artist] = {}
    for panel in panels[: len(columns)]:
        shown, labels = panel.get_legend_handles_labels()
        handles |= dict(zip(labels, shown, strict=True))
    # As many side by side as there are panels: the rows' labels may be long.
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=wide, frameon=False, fontsize=9
    )
    figure.suptitle(_word(study), fontsize=10)
    return figure


def spreads(results: Results, column: str) -> dict[str, Spread]:
    """Returns each row's scores in a column, by the row's label; of rows with a finished run."""
    found = {}
    for row in results.rows:
        score = row.scores[column]
        seeds = tuple(scores_by_seed(results.study, results.records, row.label, column).values())
        if score is not None:
            found[row.label] = Spread(score.value, min(seeds), max(seeds), seeds)
    return found


def _draw(panel: Axes, axis: Axis, found: Mapping[str, Spread]) -> None:
    every = {value.label: number_of(value.label) for value in axis.values}
    numbers = sorted((number, label) for label, number in every.items() if number is not None)
    drawn = [(number, found[label]) for number, label in numbers if label in found]
    at = [number for number, _ in drawn]
    panel.plot(at, [one.value for _, one in drawn], "o-", color=_CURVE, markersize=4, label=f"over {axis.name}")
    panel.fill_between(
        at, [one.lowest for _, one in drawn], [one.highest for _, one in drawn], color=_CURVE, alpha=0.2, lw=0
    )
    for number, one in drawn:
        panel.plot([number] * len(one.seeds), one.seeds, ".", color=_CURVE, markersize=3, alpha=0.6)
    lines = [label for label, number in every.items() if number is None and label in found]
    for place, label in enumerate(lines):
        colour, dashes = _LINES[place % len(_LINES)]
        panel.axhline(found[label].value, color=colour, ls=dashes, lw=1.4, label=label)
        panel.axhspan(found[label].lowest, found[label].highest, color=colour, alpha=0.1, lw=0)
    if numbers[0][0] > 0 and numbers[-1][0] / numbers[0][0] >= _LOGARITHMIC:
        panel.set_xscale("log")
    panel.set_xticks([number for number, _ in numbers], minor=False)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e4 else _short(value)))
    panel.minorticks_off()
    panel.tick_params(axis="x", labelrotation=30)
    panel.grid(visible=True, alpha=0.25)


def _word(study: Study) -> str:
    if len(study.seeds) == 1:
        return "one seed"
    return f"lines: {study.statistic} of {len(study.seeds)} seeds; bands: the lowest to the highest"


def _short(value: float) -> str:
    return f"{value / 1e6:.3g} M" if value >= 1e6 else f"{value / 1e3:.3g} k"
