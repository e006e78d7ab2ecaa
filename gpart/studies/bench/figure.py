"""The figures of a bench, of a sweep and of launching.

Invariant: what is drawn are all of the tables' numbers, ratios and excesses on axes that hold 0, a sweep on logarithmic
ones; GPart has one colour and nothing else has it.
As everywhere in this package, matplotlib's ``Figure`` alone is used, so that the user's pyplot stays as it is.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from gpart.studies.bench.launch import YARDSTICK, LaunchResult
from gpart.studies.bench.launch_report import excess_of
from gpart.studies.bench.measuring import Result
from gpart.studies.bench.report import label, summaries
from gpart.studies.bench.settings import GPART
from gpart.studies.bench.sweep import INDICES, OPERATIONS, Sample, SweepSettings
from gpart.studies.bench.timing import quantile, summarize
from gpart.studies.bench.turns import Timing

_GPART, _OTHERS, _REFERENCE = "#c8553d", "#9aa5b1", "#3d4852"
_COLUMNS = 3


def ratio_figure(result: Result) -> Figure | None:
    """The ratios to the reference with their quartiles, a panel for each part and shape; None where there is none."""
    timings = [timing for timing in result.timings if timing.reference is not None]
    if not timings:
        return None
    figure, panels = _panels([len(timing.samples) for timing in timings])
    for panel, timing in zip(panels, timings, strict=True):
        _draw_ratios(panel, timing)
    subject = result.subject
    figure.suptitle(
        f"{subject.name}, D = {subject.plan.size:,}, precision {result.settings.precision}, on {result.device.type}:"
        f" median and quartiles of {result.settings.rounds} interleaved rounds",
        fontsize=11,
    )
    return figure


def excess_figure(result: LaunchResult) -> Figure:
    """Milliseconds above the reference with their quartiles, a panel for each part and shape, the yardstick's marked."""
    figure, panels = _panels([len(timing.samples) - 1 for timing in result.timings])
    for panel, timing in zip(panels, result.timings, strict=True):
        _draw_excesses(panel, timing)
    figure.suptitle(
        f"{result.encoder.name}, on {result.device.type}: median and quartiles of {result.settings.rounds} interleaved"
        f" rounds, dashed {label(YARDSTICK)}'s",
        fontsize=11,
    )
    return figure


def sweep_figure(settings: SweepSettings, samples: Sequence[Sample]) -> Figure:
    """Nanoseconds per adapted weight, over D on the left and over d on the right."""
    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=130)
    over_size, over_d = figure.subplots(1, 2, sharey=True)
    swept = settings.at_weights * settings.width**2
    sizes = {count * settings.width**2 for count in settings.weights}
    _draw_sweep(over_size, [one for one in samples if one.d == settings.d and one.size in sizes], "size")
    _draw_sweep(over_d, [one for one in samples if one.size == swept and one.d in settings.ds], "d")
    over_size.set(xlabel=f"D, adapted weights, at d = {settings.d:,}", ylabel="ns per adapted weight")
    over_d.set(xlabel=f"d, length of theta, at D = {swept:,}")
    figure.legend(*over_size.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"The two operations alone, float32: median and quartiles of {settings.rounds} interleaved rounds")
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a file's content."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return file.getvalue()


def _panels(bars: Sequence[int]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each number of bars, which are of one height in all of them."""
    columns = 2 if len(bars) == 4 else min(_COLUMNS, len(bars))
    lines = -(-len(bars) // columns)
    most = max(bars)
    figure = Figure(figsize=(5 * columns, lines * (1.3 + 0.34 * most)), layout="constrained", dpi=130)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[len(bars) :]:
        axes.remove()
    for axes in panels[: len(bars)]:
        axes.set_ylim(most - 0.5, -0.5)
    return figure, panels[: len(bars)]


def _draw_ratios(axes: Axes, timing: Timing) -> None:
    found = summaries(timing)
    bars = {name: (one.ratio or 0.0, one.ratio_lower or 0.0, one.ratio_upper or 0.0) for name, one in found.items()}
    _draw_bars(axes, bars, timing.reference, 1.0)
    reference = found[timing.reference or ""].median
    axes.set_title(timing.title, fontsize=10.5, loc="left", fontweight="bold")
    axes.set_xlabel(f"time / {label(timing.reference or '')} ({_seconds(reference)})", fontsize=9)


def _draw_excesses(axes: Axes, timing: Timing) -> None:
    found = excess_of(timing)
    bars = {name: (1e3 * one.median, 1e3 * one.lower, 1e3 * one.upper) for name, one in found.items()}
    _draw_bars(axes, bars, YARDSTICK, bars[YARDSTICK][0])
    axes.set_title(timing.title, fontsize=10.5, loc="left", fontweight="bold")
    axes.set_xlabel(f"ms above {label(timing.reference or '')}", fontsize=9)


def _draw_bars(axes: Axes, bars: Mapping[str, tuple[float, float, float]], reference: str | None, line: float) -> None:
    """A bar for each method: its value, with the quartiles around it."""
    values = [value for value, _, _ in bars.values()]
    below = [max(value - lower, 0.0) for value, lower, _ in bars.values()]
    above = [max(upper - value, 0.0) for value, _, upper in bars.values()]
    drawn = axes.barh(
        range(len(bars)),
        values,
        xerr=[below, above],
        color=[_colour(name, reference) for name in bars],
        height=0.72,
        error_kw={"ecolor": "#222222", "elinewidth": 1, "capsize": 2.5},
    )
    ends = [value + high for value, high in zip(values, above, strict=True)]
    for bar, value, end in zip(drawn, values, ends, strict=True):
        place = bar.get_y() + bar.get_height() / 2
        # Beside the axis where a bar goes to the left, as noise may.
        where = (max(end, 0.0), place)
        axes.annotate(f"{value:.2f}", where, xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
    axes.axvline(line, color="#222222", linewidth=0.9, linestyle=(0, (4, 3)))
    starts = [value - low for value, low in zip(values, below, strict=True)]
    axes.set_xlim(1.16 * min(0.0, line, *starts), 1.16 * max(0.0, line, *ends))
    axes.set_yticks(range(len(bars)), [_wrapped(label(name)) for name in bars], fontsize=8.5, linespacing=0.95)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_sweep(axes: Axes, samples: Sequence[Sample], over: str) -> None:
    styles = {("expand", "stored"): (_GPART, "-"), ("expand", "computed"): (_GPART, "--")}
    styles |= {("reduce", "stored"): (_REFERENCE, "-"), ("reduce", "computed"): (_REFERENCE, "--")}
    for kind in OPERATIONS:
        for indices in INDICES:
            line = [one for one in samples if (one.kind, one.indices) == (kind, indices)]
            line.sort(key=lambda one: int(getattr(one, over)))
            xs = [getattr(one, over) for one in line]
            medians, low, high = zip(*(_per_weight(one) for one in line), strict=True)
            colour, style = styles[kind, indices]
            axes.plot(xs, medians, style, color=colour, marker="o", markersize=4, label=f"{kind}, indices {indices}")
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    # An operation may take thirty times as long at one end of the sweep; no limit by hand, which the shared axis would keep.
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelleft=True)


def _per_weight(sample: Sample) -> tuple[float, float, float]:
    """Median and quartiles in nanoseconds."""
    unit = 1e9 / sample.size
    found: Any = summarize({"": sample.seconds})[""]
    return unit * found.median, unit * quantile(sample.seconds, 0.25), unit * quantile(sample.seconds, 0.75)


def _colour(name: str, reference: str | None) -> str:
    if name.partition(":")[0] == GPART:
        return _GPART
    return _REFERENCE if name == reference else _OTHERS


def _wrapped(text: str) -> str:
    return text.replace(" (", "\n(").replace(", ", ",\n") if len(text) > 24 else text


def _seconds(value: float) -> str:
    """Three digits with a unit that fits.

    Example:
        >>> _seconds(1.2345), _seconds(0.0123)
        ('1.23 s', '12.3 ms')
    """
    return f"{value:.3g} s" if value >= 1 or math.isclose(value, 0) else f"{1000 * value:.3g} ms"
