"""Computes the numbers of a study's table from the folders of its runs.

Invariant: the same folders give the same results, in the order of the study's file. A missing result is reported as
missing and never replaced by another value.

Besides its scores, a row of the table has the median of the trainable parameters (without the head), the median of
``kept_bytes``, the median of the seconds of fit, and the maximum of ``peak_memory_bytes``. They are taken over the runs
that count towards the row's scores, so that candidates that were not selected are left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpart.studies.experiments.outcome import (
    Outcome,
    at_an_end,
    choose,
    no_score,
    read_deciding,
    read_outcome,
    validation_of,
)
from gpart.studies.experiments.paired import Difference, paired
from gpart.studies.experiments.plan import LOG_FILE, Candidate, Cell, Run
from gpart.studies.experiments.study import Study


@dataclass(frozen=True)
class Record:
    """A run and its outcome."""

    run: Run
    outcome: Outcome
    chosen: bool
    """Whether it counts towards the table once it is finished."""


@dataclass(frozen=True)
class Score:
    """One score of the table, scaled."""

    value: float
    deviation: float | None
    """The sample's standard deviation (with n - 1); None for a single run."""
    count: int
    """The number of runs that it is computed from."""


@dataclass(frozen=True)
class Row:
    """One row of the table. A value is None if nothing is known yet."""

    label: str
    scores: Mapping[str, Score | None]
    differences: Mapping[str, Difference | None]
    """The paired difference to the study's baseline in each column; empty for the baseline itself, or without one."""
    average: float | None
    """The mean of the columns' scores, if every column has one."""
    parameters: float | None
    kept_bytes: float | None
    seconds: float | None
    peak_bytes: float | None


@dataclass(frozen=True)
class Choice:
    """The candidate of a cell that the validation scores selected."""

    cell: str
    chosen: Candidate | None
    why: str
    """The reason if none is selected."""
    scores: Mapping[str, float | None]
    """The mean validation score of every candidate over the deciding seeds."""
    at_an_end: bool
    """Whether it is the lowest or the highest of the numbers tried."""


@dataclass(frozen=True)
class Results:
    """Everything that the tables show."""

    study: Study
    rows: tuple[Row, ...]
    choices: tuple[Choice, ...]
    records: tuple[Record, ...]
    missing: int
    """The number of runs that are still to be made, including those whose candidate is not selected yet."""
    problems: tuple[str, ...]
    """A line for each run that failed or has no score."""


def collect(study: Study, cells: Sequence[Cell]) -> Results:
    """Reads the folders of all runs, and computes the results.

    Args:
        study: the study.
        cells: all of its cells, not those of a shard.
    """
    records: list[Record] = []
    choices: list[Choice] = []
    missing = 0
    for cell in cells:
        deciding = read_deciding(cell)
        chosen, why = choose(cell, deciding)
        for candidate, outcomes in zip(cell.candidates, deciding, strict=True):
            here = zip(candidate.runs, outcomes, strict=False)  # there may be further seeds
            records += [Record(run, outcome, candidate is chosen) for run, outcome in here]
            if candidate is chosen:
                records += [Record(run, read_outcome(run), chosen=True) for run in candidate.runs[cell.deciding :]]
        if chosen is None:
            missing += len(study.seeds) - cell.deciding
        if cell.candidates[0].tuned:
            scores = {
                candidate.text: validation_of(outcomes)
                for candidate, outcomes in zip(cell.candidates, deciding, strict=True)
            }
            end = chosen is not None and at_an_end(cell, chosen)
            choices.append(Choice(cell.name, chosen, why, scores, end))
    missing += sum(record.outcome.state in ("missing", "stale") for record in records)
    return Results(
        study=study,
        rows=tuple(_row(study, label, records) for label in study.rows),
        choices=tuple(choices),
        records=tuple(records),
        missing=missing,
        problems=tuple(line for record in records if (line := _problem(record)) is not None),
    )


def _problem(record: Record) -> str | None:
    if record.outcome.state == "failed":
        return f"{record.run.name}: {record.outcome.why}"
    unscored = no_score(record.run, record.outcome)
    return None if unscored is None else f"{record.run.name}: {unscored} (log: {record.run.folder / LOG_FILE})"


def _row(study: Study, label: str, records: Sequence[Record]) -> Row:
    mine = [record for record in records if _counts(record) and study.row_label(record.run.labels) == label]
    seeds = {value.label: scores_by_seed(study, mine, label, value.label) for value in study.column_axis.values}
    scores = {column: _score(study, by_seed.values()) for column, by_seed in seeds.items()}
    differences: dict[str, Difference | None] = {}
    if study.baseline is not None and label != study.baseline:
        differences = {
            column: paired(by_seed, scores_by_seed(study, records, study.baseline, column))
            for column, by_seed in seeds.items()
        }
    values = [score.value for score in scores.values() if score is not None]
    outcomes = [record.outcome for record in mine]
    return Row(
        label=label,
        scores=scores,
        differences=differences,
        average=statistics.fmean(values) if len(values) == len(scores) else None,
        parameters=_median(_without_head(outcome) for outcome in outcomes),
        kept_bytes=_median(outcome.number("kept_bytes") for outcome in outcomes),
        seconds=_median(outcome.number("fit", "seconds") for outcome in outcomes),
        peak_bytes=max(_there(outcome.number("peak_memory_bytes") for outcome in outcomes), default=None),
    )


def _counts(record: Record) -> bool:
    finished = record.outcome.state == "finished"
    return record.chosen and finished and record.outcome.score(record.run) is not None


def scores_by_seed(study: Study, records: Iterable[Record], row: str, column: str) -> dict[int, float]:
    """The scaled scores of one place of the table, by seed."""
    return {
        record.run.seed: (record.outcome.score(record.run) or 0.0) * study.scale
        for record in records
        if _counts(record) and study.row_label(record.run.labels) == row and record.run.labels[study.columns] == column
    }


def _score(study: Study, values: Iterable[float]) -> Score | None:
    scaled = list(values)
    if not scaled:
        return None
    if not all(map(math.isfinite, scaled)):
        return Score(math.nan, None, len(scaled))  # a median would hide that a run diverged
    value = statistics.median(scaled) if study.statistic == "median" else statistics.fmean(scaled)
    return Score(value, statistics.stdev(scaled) if len(scaled) > 1 else None, len(scaled))


def _without_head(outcome: Outcome) -> float | None:
    trainable = outcome.number("parameters", "trainable")
    return None if trainable is None else trainable - (outcome.number("parameters", "head") or 0)


def _median(values: Iterable[float | None]) -> float | None:
    there = _there(values)
    return statistics.median(there) if there else None


def _there(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
