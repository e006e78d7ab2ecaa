"""What ``gpart study`` is going to run: whether its recipes are there, and the list that ``--dry-run`` prints.

Invariant: nothing is started, and no file is written.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from gpart.cli.configs import find_recipe
from gpart.errors import GPartError
from gpart.studies.experiments.aside import can_take_back
from gpart.studies.experiments.cells import first_runs
from gpart.studies.experiments.outcome import choose, read_deciding, read_outcome
from gpart.studies.experiments.plan import Cell
from gpart.studies.experiments.ray_engine import RayRequest


def check_recipes(cells: Sequence[Cell], request: RayRequest | None) -> None:
    """Refuses a study that names a recipe which is not there: each of its runs would fail by itself.

    Raises:
        GPartError: if there is one. A file may be where Ray's workers are, and is not looked for then.
    """
    for cell in cells:
        for word in cell.candidates[0].runs[0].words:
            name = word.removeprefix("--config=")
            if name == word or (request is not None and Path(name).suffix):
                continue
            try:
                find_recipe(name)
            except GPartError as error:
                raise GPartError(f"{cell.name}: {error}") from error


def list_runs(cells: Sequence[Cell]) -> None:
    """Prints each run with its state and its command line."""
    counts: dict[str, int] = {}

    def count(state: str, text: str) -> None:
        counts[state] = counts.get(state, 0) + 1
        print(f"{state:<8}  {text}")

    for cell in cells:
        chosen, why = choose(cell, read_deciding(cell))
        for run in [*first_runs(cell), *(chosen.runs[cell.deciding :] if chosen else ())]:
            outcome = read_outcome(run)
            state = "finished" if outcome.state == "finished" else "to run"
            note = f": {outcome.why}" if outcome.why else ""
            if can_take_back(run):
                note = f": it is taken back from {run.before}"
            count(state, f"{run.name}{note}\n          {shlex.join(['gpart', *run.words])}")
        for run in () if chosen else cell.candidates[0].runs[cell.deciding :]:
            count("waits", f"{cell.name} / seed {run.seed}: {why}")
    print("\n" + (", ".join(f"{number} {state}" for state, number in counts.items()) or "nothing to run"))
