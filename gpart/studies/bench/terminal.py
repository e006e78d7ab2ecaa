"""What a bench shows on a terminal: how far it is, and its tables."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gpart.studies.bench.report import Sheet


def as_table(sheet: Sheet) -> Table:
    """A table without its note."""
    table = Table(*sheet.header, box=SIMPLE, title=sheet.title, title_justify="left", title_style="bold")
    for place, column in enumerate(table.columns[1:], 1):
        column.justify = "right"
        # Headers go over several lines, so that 80 columns hold every number; the first column takes what is left.
        column.width = max(map(len, [*sheet.header[place].split(), *(row[place] for row in sheet.rows)]))
    for row in sheet.rows:
        table.add_row(*row)
    return table


class Shown:
    """A progress bar on a terminal; elsewhere a line for each thing that is measured."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, soft_wrap=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self.progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._bar = self.progress.add_task("", total=None)
        self._title = ""

    def tell(self, title: str, done: int, total: int) -> None:
        """Shows how far it is."""
        if title != self._title:
            self._title = title
            if self.progress.disable:
                self._console.print(f"measuring {title}")
        self.progress.update(self._bar, description=title, completed=done, total=total)
