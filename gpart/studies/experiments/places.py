"""What stands in the places of a study's table, whatever it is written as.

Invariant: table.md and table.tex show the same numbers, rounded alike, and mark the same ones as the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gpart.studies.experiments.listed import mapping
from gpart.studies.experiments.paired import CONFIDENCE
from gpart.studies.experiments.results import Results, Row, Score
from gpart.studies.experiments.study import AVERAGE, Study

COSTS = ("trainable (no head)", "adapter bytes", "train s", "peak MB")


@dataclass(frozen=True)
class Place:
    """One score in the table, as texts."""

    value: str | None
    """With one decimal; None if there is none."""
    deviation: str | None
    best: bool
    """Whether it is the best of its column, by the column's mode. Values that look equal in the table count as equal."""
    seeds: str
    """How many seeds it is of, where some are missing; else empty."""
    paper: str | None
    """The paper's score."""


def header(study: Study) -> list[str]:
    """The names of the table's columns."""
    columns = [value.label for value in study.column_axis.values]
    return [" / ".join(axis.name for axis in study.row_axes) or "study", *columns, f"{AVERAGE}.", *COSTS]


def places(results: Results) -> list[list[Place]]:
    """The scores of each row in the order of the columns, and last their average."""
    study = results.study
    axis = study.column_axis.values
    columns = [value.label for value in axis]
    bests = [_best((row.scores[value.label] for row in results.rows), value.mode) for value in axis]
    modes = {value.mode for value in axis}
    # A mean of scores of which some are better high and others low is neither.
    bests.append(_best((row.average for row in results.rows), modes.pop()) if len(modes) == 1 else None)
    found = []
    for row in results.rows:
        paper = study.paper.get(row.label, {})
        scores = [*(row.scores[column] for column in columns), row.average]
        named = zip(scores, bests, [*columns, AVERAGE], strict=True)
        found.append([_place(score, best, paper.get(name), len(study.seeds)) for score, best, name in named])
    return found


def costs(row: Row) -> list[str]:
    """The texts below ``COSTS``."""
    return [
        "-" if row.parameters is None else f"{row.parameters:,.0f}",
        "-" if row.kept_bytes is None else f"{row.kept_bytes:,.0f}",
        "-" if row.seconds is None else f"{row.seconds:.1f}",
        "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
    ]


def differences(results: Results) -> list[list[tuple[str, bool]]]:
    """The paired differences to the baseline: the header, and for each other row its label and a text for each column.

    Beside each text stands whether the interval excludes 0.
    """
    study = results.study
    columns = [value.label for value in study.column_axis.values]
    lines = [[(text, False) for text in (f"less {study.baseline}", *columns)]]
    for row in results.rows:
        if row.label == study.baseline:
            continue
        line = [(row.label, False)]
        for one in (row.differences.get(column) for column in columns):
            if one is None:
                line.append(("-", False))
            elif one.low is None or one.high is None:
                line.append((f"{one.mean:+.1f} (one pair)", False))
            else:
                line.append((f"{one.mean:+.1f} [{one.low:+.1f}, {one.high:+.1f}]", one.ordered is not None))
        lines.append(line)
    return lines


def said_of_differences(study: Study) -> str:
    """What stands above the differences."""
    return (
        f"Paired differences to {study.baseline}, seed by seed: the mean and its {CONFIDENCE:.0%} Student interval, each"
        " by itself. Bold: the interval excludes 0, so that the two are ordered; the others are not."
    )


def notes(results: Results) -> list[str]:
    """What the numbers are, and by which device and versions they came, in a line each."""
    study, seeds = results.study, len(results.study.seeds)
    finished = [record.outcome.metrics for record in results.records if record.outcome.state == "finished"]
    devices = sorted({str(metrics.get("device")) for metrics in finished})
    versions: dict[str, set[str]] = {}
    for record in results.records:
        for package, version in mapping(record, "versions").items():
            versions.setdefault(str(package), set()).add(str(version))
    used = ", ".join(f"{package} {' and '.join(sorted(those))}" for package, those in sorted(versions.items()))
    shown, other = "Score", ""
    if seeds > 1:
        shown = f"{study.statistic.capitalize()} ± standard deviation (n - 1)"
        factor = math.sqrt((seeds - 1) / seeds)
        other = (
            f" The deviation that divides by n, as the paper's code does, is {factor:.3f} times that of {seeds} seeds."
        )
    what = (
        f"{shown} of the test metric times {study.scale:g}; seeds {', '.join(map(str, study.seeds))}.{other} Bold: the"
        f" best of a column{_lower(study)}. Parameters, bytes and seconds are medians over a row's runs, memory the maximum. A method that"
        " names no head, as full fine-tuning, is counted with it."
    )
    return [what, f"Device: {', '.join(devices) or '-'}. Versions: {used or '-'}."]


def _lower(study: Study) -> str:
    """Says which columns are better low; nothing where all are better high."""
    low = [value.label for value in study.column_axis.values if value.mode == "min"]
    return f" (lower is better: {', '.join(low)})" if low else ""


def _best(scores: Iterable[Score | float | None], mode: str) -> str | None:
    """Returns the highest or the lowest value as it is shown."""
    best = max if mode == "max" else min
    values = [score.value if isinstance(score, Score) else score for score in scores if score is not None]
    return best((f"{value:.1f}" for value in values if math.isfinite(value)), key=float, default=None)


def _place(score: Score | float | None, best: str | None, paper: float | None, seeds: int) -> Place:
    value, deviation, short = None, None, ""
    if score is not None:
        value = f"{score.value if isinstance(score, Score) else score:.1f}"
        if isinstance(score, Score) and score.deviation is not None:
            deviation = f"{score.deviation:.1f}"
        if isinstance(score, Score) and score.count < seeds:
            short = f"{score.count} of {seeds} seeds"
    is_best = value is not None and value == best
    return Place(value, deviation, is_best, short, None if paper is None else f"{paper:g}")
