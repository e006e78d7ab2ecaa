"""Makes the runs of a study's cells, one after the other, and shares them with other studies of the same cells.

Invariant: a cell's candidate is selected when all runs that decide on it have ended, whoever made them. Each run of a
selected candidate is reported once.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpart.studies.experiments.outcome import choose, read_deciding
from gpart.studies.experiments.plan import Cell, Run
from gpart.studies.experiments.processes import COMMAND
from gpart.studies.experiments.running import Event, Tell, run_once


def count_runs(cells: Sequence[Cell]) -> int:
    """Returns the number of runs of the cells: those of each candidate that decide, and the other seeds of the selected one."""
    return sum(len(cell.candidates[0].runs) + (len(cell.candidates) - 1) * cell.deciding for cell in cells)


def run_cells(cells: Sequence[Cell], tell: Tell, command: Sequence[str] = COMMAND) -> None:
    """Makes all runs that are not finished. A run that fails is reported, and the others go on.

    A run that another process works on is waited for, when there is nothing else to make. So several studies of the same
    cells share the runs to the last one, and what a study was at when it was killed is made by another.

    Args:
        cells: the cells of the study, or of a shard.
        tell: a function that is called with every event.
        command: the command that a run's words are appended to.
    """

    def left_of(runs: Sequence[Run]) -> list[Run]:
        """Makes the runs that no other process works on, and returns the others."""
        left = []
        for run in runs:
            event = run_once(run, tell, command)
            if event.kind == "locked":
                left.append(run)
            else:
                tell(event)
        return left

    def wait_for(runs: Sequence[Run]) -> None:
        for run in runs:
            tell(Event("waiting", run.name, "another process is at it"))
            tell(run_once(run, tell, command, patience=-1))

    undecided: list[tuple[Cell, list[Run]]] = []
    last: list[Run] = []
    for cell in cells:
        if left := left_of(first_runs(cell)):
            undecided.append((cell, left))
        else:
            last += left_of(following_runs(cell, tell))
    for cell, left in undecided:
        wait_for(left)
        last += left_of(following_runs(cell, tell))
    wait_for(last)


def first_runs(cell: Cell) -> list[Run]:
    """Returns the runs that decide on the cell's candidate."""
    return [run for candidate in cell.candidates for run in candidate.runs[: cell.deciding]]


def following_runs(cell: Cell, tell: Tell) -> tuple[Run, ...]:
    """Returns the other runs of the selected candidate. If none is selected, it reports that, and returns none."""
    deciding = read_deciding(cell)
    chosen, why = choose(cell, deciding)
    if chosen is not None:
        return chosen.runs[cell.deciding :]
    states = [outcome.state for outcomes in deciding for outcome in outcomes]
    if all(state in ("finished", "failed") for state in states) and "finished" in states:
        tell(Event("unchosen", cell.name, why))  # other cases have been reported: all failed, or are being run
    for run in cell.candidates[0].runs[cell.deciding :]:
        tell(Event("skipped", f"{cell.name} / seed {run.seed}", why))
    return ()
