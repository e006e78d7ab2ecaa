"""Reads the outcome of a run from its folder, and selects the candidate with the best validation score.

Invariant: a result counts only if it was made by exactly the command line that would be run now, and by a process that
ended without an error. A candidate is selected by validation scores alone, never by a test score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpart.studies.experiments.plan import COMMAND_FILE, METRICS_FILE, Candidate, Cell, Run


@dataclass(frozen=True)
class Outcome:
    """The state of a run.

    - ``finished``: its scores count.
    - ``failed``: its process ended with an error.
    - ``stale``: it was run with another command line.
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
        """Returns the run's test score."""
        return self.number("test", f"test/{run.metric}")

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
    """Reads the outcome of a run from its folder."""
    command = read_object(run.folder / COMMAND_FILE)
    if command is None:
        return Outcome("missing")
    if command.get("words") != list(run.words):
        return Outcome("stale", why="it was run with other words")
    if "failed" in command:
        return Outcome("failed", why=str(command["failed"]))
    metrics = read_object(run.folder / METRICS_FILE)
    if metrics is None or metrics.get("state") != "tested":
        return Outcome("missing")
    return Outcome("finished", metrics)


def no_score(run: Run, outcome: Outcome) -> str | None:
    """Returns why a finished run has no score, and what its test gave instead; None if it has a score."""
    if outcome.state != "finished" or outcome.score(run) is not None:
        return None
    given, name = outcome.metrics.get("test"), f"test/{run.metric}"
    test = given if isinstance(given, Mapping) else {}
    if name in test:
        return f"metric {run.metric!r}: its test gave {name} {test[name]!r}, which is no number"
    return f"metric {run.metric!r}: its test gave no {name} but {', '.join(test) or 'nothing'}"


def choose(cell: Cell, firsts: Sequence[Outcome]) -> tuple[Candidate | None, str]:
    """Selects the candidate with the best validation score.

    The choice is made once all candidates have been run, among those that finished. A candidate that fails does not
    stop the others.

    Args:
        cell: the cell with its candidates.
        firsts: the outcome of each candidate's run with the first seed, in the candidates' order.

    Returns:
        The candidate (the first, if several are equal) and an empty text; or None, and the reason why none is selected.
    """
    if len(cell.candidates) == 1:
        return cell.candidates[0], ""
    waiting = sum(outcome.state in ("missing", "stale") for outcome in firsts)
    if waiting:
        return None, f"the choice waits for {waiting} of {len(firsts)} candidates"
    scores = [
        (outcome.rank, candidate)
        for outcome, candidate in zip(firsts, cell.candidates, strict=True)
        if outcome.validation is not None
    ]
    if not scores:
        return None, f"none of {len(firsts)} candidates has a validation score (fit.best_score in {METRICS_FILE})"
    return max(scores, key=lambda pair: pair[0])[1], ""


def read_object(path: Path) -> dict[str, Any] | None:
    """Reads an object from a JSON file; returns None if there is no such file, or it is half written or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
