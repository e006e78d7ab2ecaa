"""What ``gpart study`` shows while it runs: a bar with the time that is left, or lines where there is no terminal.

Invariant: every run is counted once, when it has ended or is known not to be made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from gpart.studies.experiments.running import Event


class StudyProgress:
    """The bar, and what has been told of the runs.

    Attributes:
        failed: the number of runs that failed, and of cells of which no candidate could be chosen.
    """

    def __init__(self, progress: Progress, bar: TaskID, console: Console) -> None:
        self.failed = 0
        self._made, self._progress, self._bar, self._console = 0, progress, bar, console

    def tell(self, event: Event) -> None:
        """Shows an event."""
        self.failed += event.kind in ("failed", "unchosen")
        if event.kind == "started":
            self._progress.update(self._bar, description=event.name)
        elif event.kind not in ("waiting", "unchosen"):
            if event.kind in ("finished", "failed"):
                self._made += 1
                self._progress.update(self._bar, made=self._made, seconds=self._progress.tasks[0].elapsed or 0.0)
            self._progress.advance(self._bar)
        self._console.print(f"{event.kind:<8}  {event.name}" + (f": {event.text}" if event.text else ""))


@contextmanager
def shown(total: int) -> Iterator[StudyProgress]:
    """Within it the bar is shown.

    Args:
        total: the number of runs.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    columns = (
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), _Left()),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield StudyProgress(progress, progress.add_task("", total=total, made=0, seconds=0.0), console)


class _Left(ProgressColumn):
    """The time that is left, if the other runs go on at the pace of those made until now."""

    def render(self, task: Task) -> Text:
        seconds = seconds_left(task.fields["made"], task.remaining or 0, task.fields["seconds"], task.elapsed or 0)
        return Text("-:--:-- left" if seconds is None else f"{timedelta(seconds=round(seconds))} left")


def seconds_left(made: int, remaining: float, until_last: float, now: float) -> float | None:
    """Returns the time that is left, by the mean time that the runs made until now took one after the other.

    Runs at the same time need no rule of their own, as it is the time between two ends that counts.

    Args:
        made: the number of runs made until now; runs that were only kept take no time, and are none of them.
        remaining: the number of runs that are left.
        until_last: the seconds from the start until the last of them ended.
        now: the seconds from the start until now.

    Returns:
        Seconds; None before the first run has ended.

    Example:
        >>> seconds_left(made=2, remaining=3, until_last=20.0, now=24.0)
        26.0
    """
    return max(0.0, until_last / made * remaining - (now - until_last)) if made else None
