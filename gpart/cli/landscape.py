"""``gpart landscape``: the validation loss around trained points, side by side."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Trainer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from gpart.bases.current_folder import look_in_current_folder
from gpart.cli.message import Parser
from gpart.errors import GPartError
from gpart.serialization.atomic import replacing
from gpart.studies.bench.figure import png
from gpart.studies.bench.machine import describe_machine
from gpart.studies.finished_run import quiet
from gpart.studies.found_run import find_run
from gpart.studies.landscape import report
from gpart.studies.landscape.directions import Normalise, Scale
from gpart.studies.landscape.figure import landscape_figure
from gpart.studies.landscape.measuring import Subject, Tell, measure
from gpart.studies.landscape.page import page
from gpart.studies.landscape.settings import Settings
from gpart.studies.landscape.store import Store
from gpart.studies.landscape.summary import Landscape, landscape_of

DESCRIPTION = """Draws the validation loss of finished runs on a grid around the trained point, theta* + a·u + b·v. u and v are
random directions of what the method itself trains, without the head, scaled to its norm: the paper's Figure 4b, for any
method. Writes landscape.png, landscape.html (interactive, one file), landscape.json and landscape.md. What is measured is
kept in points.jsonl: the same command goes on where it was stopped."""

EPILOG = """a RUN is the folder of a run of 'gpart fit' or 'gpart study', or a .ckpt in it; NAME=RUN gives it a name in the picture.

examples:
  gpart fit --config quickstart
  gpart fit --config quickstart --config methods/lora --trainer.default_root_dir runs/lora
  gpart landscape GPart=runs/quickstart LoRA=runs/lora --rows 256 --workers 2
"""


def landscape_command(words: list[str]) -> int:
    """Measures what is missing, prints the numbers and writes the files.

    Returns:
        0; 130 if it was stopped by Ctrl-C.

    Raises:
        GPartError: if a run cannot be found or built, a setting is wrong, or another process is at the same folder.
    """
    asked = _parser().parse_args(words)
    look_in_current_folder()  # worker processes get it with the path that they inherit
    subjects = _subjects(asked.runs)
    settings = Settings(
        rows=asked.rows or None,
        points=asked.points,
        span=asked.span,
        seeds=tuple(range(asked.seeds)),
        scale=asked.scale,
        normalise=asked.normalise,
        steps=asked.steps,
    )
    if asked.workers < 1:
        raise GPartError(f"--workers must be at least 1, got {asked.workers}")
    folder = Path(asked.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock").acquire(blocking=False):
            store = Store(folder / "points.jsonl")
            with _Shown() as tell:
                measure(subjects, settings, store, tell, asked.workers, asked.accelerator)
            landscapes = [landscape_of(subject, settings, store) for subject in subjects]
            command = shlex.join(["gpart", "landscape", *words])
            _write(landscapes, settings, folder, command, _device(asked.accelerator))
    except KeyboardInterrupt:
        print("gpart landscape: stopped; what is measured is kept, and the same command goes on from here")
        return 130
    except Timeout:
        raise GPartError(f"another gpart landscape is at --output {folder}") from None
    except OSError as error:
        raise GPartError(f"--output {folder} cannot be written: {error}") from error
    return 0


def _parser() -> Parser:
    defaults = Settings()
    parser = Parser(
        prog="gpart landscape",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a finished run")
    parser.add_argument("--output", metavar="FOLDER", default="landscape", help="where the files go (%(default)s)")
    parser.add_argument(
        *("--rows",), type=int, default=defaults.rows, help="validation rows, in whole batches; 0 for all (%(default)s)"
    )
    parser.add_argument("--points", type=int, default=defaults.points, help="points a side, odd (%(default)s)")
    parser.add_argument(
        "--span", type=float, default=defaults.span, help="how far the grid goes, in units of the norm (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=len(defaults.seeds), help="pairs of directions (%(default)s)")
    parser.add_argument(
        "--scale",
        choices=get_args(Scale),
        default=defaults.scale,
        help="a direction's norm: the trained vector's, or that of its change since training began (%(default)s)",
    )
    parser.add_argument(
        "--normalise",
        choices=get_args(Normalise),
        default=defaults.normalise,
        help="scale a direction as a whole, or each row of a matrix in it by itself (%(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, default=defaults.steps, help="Lanczos steps for the eigenvalues; 0 for none (%(default)s)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that measure (%(default)s)")
    parser.add_argument("--accelerator", default="auto", help="Lightning's name of the device (%(default)s)")
    return parser


def _subjects(words: Sequence[str]) -> list[Subject]:
    """The runs with their names: those given, else the parts of their paths in which they differ."""
    given: list[tuple[str | None, Path]] = []
    for word in words:
        name, equals, path = word.partition("=")
        named = bool(equals) and not Path(word).exists()
        given.append((name, Path(path)) if named else (None, Path(word)))
    names = _told_apart([path for _, path in given])
    subjects = [Subject(name or other, find_run(path)) for (name, path), other in zip(given, names, strict=True)]
    labels = [subject.name for subject in subjects]
    if twice := sorted({name for name in labels if labels.count(name) > 1}):
        raise GPartError(f"two runs have the name {twice[0]!r}: give them others by NAME=RUN")
    return subjects


def _told_apart(paths: Sequence[Path]) -> list[str]:
    """What of each path the others have not, from the first part that differs to the last.

    >>> _told_apart([Path("runs/GPart/seed-0"), Path("runs/LoRA/seed-0")]), _told_apart([Path("runs/a")])
    (['GPart', 'LoRA'], ['a'])
    """
    parts = [list(path.resolve().parts) for path in paths]
    for end in (0, -1):
        while min(map(len, parts)) > 1 and len({part[end] for part in parts}) == 1:
            for part in parts:
                part.pop(end)
    return ["/".join(part) for part in parts]


def _write(
    landscapes: Sequence[Landscape], settings: Settings, folder: Path, command: str, device: torch.device
) -> None:
    about: dict[str, Any] = {"command": command, "machine": describe_machine(device)}
    content = report.as_json(landscapes, settings, about)
    lines = report.table(landscapes)
    title = f"Validation loss around the trained point, mean of {len(settings.seeds)} pairs of random directions"
    shown = {**content, "title": title, "table": lines}
    files = {
        "landscape.json": (json.dumps(content, allow_nan=False) + "\n").encode(),
        "landscape.md": report.markdown(landscapes, settings, command).encode(),
        "landscape.png": png(landscape_figure(landscapes, title)),
        "landscape.html": page(shown).encode(),
    }
    for name, made in files.items():
        with replacing(folder / name) as file:
            file.write(made)
    table = Table(*lines[0], box=SIMPLE)
    for line in lines[1:]:
        table.add_row(*line)
    Console().print(table)
    for caution in report.cautions(landscapes):
        print(f"note: {caution}")
    print("written:", ", ".join((folder / name).as_posix() for name in files))


def _device(accelerator: str) -> torch.device:
    """The device that Lightning takes by this name: what the runs were measured on."""
    with quiet():
        return Trainer(
            accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False
        ).strategy.root_device


class _Shown:
    """A progress bar with the time that is left on a terminal; elsewhere a line for each tenth of the work."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, soft_wrap=True)
        columns = (
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._bar = self._progress.add_task("", total=1.0)
        self._done, self._tenths = 0.0, 0

    def __enter__(self) -> Tell:
        self._progress.start()
        return self._tell

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _tell(self, name: str, share: float) -> None:
        """Shows how far it is."""
        self._done += share
        self._progress.update(self._bar, advance=share, description=name)
        tenths = int(10 * self._done + 1e-6)
        if self._progress.disable and tenths > self._tenths:
            self._tenths = tenths
            self._console.print(f"measured {10 * tenths} %, {name}")
