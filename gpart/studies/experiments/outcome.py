"""Reads the outcome of a run from its folder, and selects the candidate with the best validation score.

Invariant: a result counts only if it was made by exactly the command line that would be run now, from recipes of the
same content, and by a process that ended without an error. A candidate is selected by validation scores alone, never by a test score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from gpart.studies.experiments.plan import COMMAND_FILE, METRICS_FILE, Candidate, Cell, Run
from gpart.studies.experiments.recipes import difference
from gpart.studies.experiments.study import number_of

ROUNDING = 1e-6
"""The relative difference below which two means of scores are equal: a score is a float32, which has about 7 digits."""


@dataclass(frozen=True)
class Outcome:
    """The state of a run.

    - ``finished``: its scores count.
    - ``failed``: its process ended with an error.
    - ``stale``: it was run with another command line, or a recipe has changed since.
    - ``missing``: it was not run, or its process was killed.
    """

    state: Literal["finished", "failed", "stale", "missing"]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""

    def number(self, *path: str) -> float | None:
        """Returns a number in metrics.json by its keys; None if there is none."""
        value: Any = self.metrics
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def score(self, run: Run) -> float | None:
        """Returns the run's test score: ``test/NAME``, as this package's modules log it, else what is logged as NAME."""
        score = self.number("test", f"test/{run.metric}")
        return self.number("test", run.metric) if score is None else score

    @property
    def validation(self) -> float | None:
        """The best validation score. It is None if there is none or it is not finite, as after a divergence."""
        score = self.number("fit", "best_score")
        return score if score is not None and math.isfinite(score) else None

    @property
    def rank(self) -> float:
        """The validation score, with its sign changed if lower is better, by the mode of the run's ModelCheckpoint."""
        score = -math.inf if self.validation is None else self.validation
        return -score if self.metrics["fit"].get("best_mode") == "min" else score


def read_outcome(run: Run) -> Outcome:
    """Reads the outcome of a run from its folder, or from what was kept aside of it if only that has finished."""
    own = read_made(run.folder, run.words)
    if own.state == "finished":
        return own
    kept = read_made(run.before, run.words)
    return kept if kept.state == "finished" else own


def read_made(folder: Path, words: Sequence[str]) -> Outcome:
    """Reads the outcome that a folder holds of a run with these words."""
    command = read_object(folder / COMMAND_FILE)
    if command is None:
        return Outcome("missing")
    if (why := difference(command, words)) is not None:
        return Outcome("stale", why=why)
    if "failed" in command:
        return Outcome("failed", why=str(command["failed"]))
    metrics = read_object(folder / METRICS_FILE)
    if metrics is None or metrics.get("state") != "tested":
        return Outcome("missing")
    return Outcome("finished", metrics)


def no_score(run: Run, outcome: Outcome) -> str | None:
    """Returns why a finished run has no score, and what its test gave instead; None if it has a score."""
    if outcome.state != "finished" or outcome.score(run) is not None:
        return None
    given, names = outcome.metrics.get("test"), (f"test/{run.metric}", run.metric)
    test = given if isinstance(given, Mapping) else {}
    for name in names:
        if name in test:
            return f"metric {run.metric!r}: its test gave {name} {test[name]!r}, which is no number"
    return f"metric {run.metric!r}: its test gave no {' or '.join(names)} but {', '.join(test) or 'nothing'}"


def read_deciding(cell: Cell) -> list[list[Outcome]]:
    """Reads, for each candidate, the outcomes of the runs that decide on it."""
    return [[read_outcome(run) for run in candidate.runs[: cell.deciding]] for candidate in cell.candidates]


def validation_of(outcomes: Sequence[Outcome]) -> float | None:
    """Returns a candidate's mean validation score over the deciding runs; None if one of them has none."""
    scores = [outcome.validation for outcome in outcomes]
    there = [score for score in scores if score is not None]
    return fmean(there) if there and len(there) == len(scores) else None


def choose(cell: Cell, deciding: Sequence[Sequence[Outcome]]) -> tuple[Candidate | None, str]:
    """Selects the candidate with the best mean validation score over the deciding seeds.

    The choice is made once all candidates have been run with these seeds, among those that finished with all of them. A
    candidate that fails does not stop the others. Means that differ by no more than the rounding of float32 scores are equal.

    Args:
        cell: the cell with its candidates.
        deciding: what :func:`read_deciding` returns.

    Returns:
        The candidate (the first, if several are equal) and an empty text; or None, and the reason why none is selected.
    """
    if len(cell.candidates) == 1:
        return cell.candidates[0], ""
    waiting = sum(any(one.state in ("missing", "stale") for one in outcomes) for outcomes in deciding)
    if waiting:
        return None, f"the choice waits for {waiting} of {len(deciding)} candidates"
    scores = [
        (fmean(one.rank for one in outcomes), candidate)
        for outcomes, candidate in zip(deciding, cell.candidates, strict=True)
        if validation_of(outcomes) is not None
    ]
    if not scores:
        return None, f"none of {len(deciding)} candidates has a validation score (fit.best_score in {METRICS_FILE})"
    best = max(score for score, _ in scores)
    return next(candidate for score, candidate in scores if math.isclose(score, best, rel_tol=ROUNDING)), ""


def at_an_end(cell: Cell, chosen: Candidate) -> bool:
    """Whether the choice is the lowest or the highest of the numbers tried, so that a better one may lie beyond.

    Only a setting that has two values or more counts, and only if they are numbers, or texts of numbers: YAML reads
    1e-3 as a text.
    """
    for key, value in chosen.tuned.items():
        tried = {number_of(candidate.tuned[key]) for candidate in cell.candidates}
        numbers = sorted(number for number in tried if number is not None)
        if len(numbers) == len(tried) > 1 and number_of(value) in (numbers[0], numbers[-1]):
            return True
    return False


def read_object(path: Path) -> dict[str, Any] | None:
    """Reads an object from a JSON file; returns None if there is no such file, or it is half written or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
