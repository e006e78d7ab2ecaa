"""``gpart study``: many runs from one file, and their table."""

from __future__ import annotations

import argparse
import math
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from gpart.cli.configs import find_recipe
from gpart.cli.message import Parser
from gpart.cli.study_ahead import check_recipes, list_runs
from gpart.cli.study_progress import shown
from gpart.errors import GPartError
from gpart.serialization.atomic import replacing
from gpart.studies.experiments.cells import count_runs, run_cells
from gpart.studies.experiments.plan import Cell, plan, shard_of
from gpart.studies.experiments.processes import COMMAND
from gpart.studies.experiments.ray_engine import RayRequest, run_cells_on_ray
from gpart.studies.experiments.results import collect
from gpart.studies.experiments.schema import read_study
from gpart.studies.experiments.study import Study
from gpart.studies.experiments.tables import markdown, write_table

DESCRIPTION = """Runs methods x tasks x seeds, each run as a process of its own ('gpart fit ...'), and writes their table:
table.md, table.tex (LaTeX, needs booktabs), table.csv and table.json. What is finished is kept. A study that is started
again goes on where it was stopped."""

EPILOG = """a study's file:
  folder: runs/glue            # default runs/<the file's name>; as config, from the current folder on
  every:                       # words of every run
    config: []                 # recipes or files
    set: {trainer.max_epochs: 2}
    seeded: [data.seed]        # settings that take the run's seed; a label may have its own: GPart: {seeded: [method.seed]}
  axes:                        # axis -> label -> {config, set, tune, seeded}, each optional
    task:
      RTE: {config: glue/rte, metric: accuracy}
      CoLA: {config: glue/cola, metric: matthews}
    method:                    # after task, as its recipes go over the task's
      GPart: {tune: {model.lr: [5.0e-3, 1.0e-2]}}
      LoRA: {config: methods/lora, tune: {model.lr: [5.0e-4, 2.0e-3]}}
  columns: task                # the axis whose values, each with a metric, are the table's columns. A metric is
                               # what the test logs as test/NAME, or as NAME (test_loss of one's own module);
                               # mode: min beside a metric that is better low, such as mse; default max
  seeds: [0, 1, 2]
  tune_seeds: 1                # how many of them choose among the tuned values
  baseline: GPart              # the row that the others are compared with, seed by seed; default none
  statistic: median            # or mean
  scale: 100
  paper: {GPart: {RTE: 78.3, Avg: 83.7}}

tune: every candidate runs with the first tune_seeds seeds. The one with the best mean validation score (fit.best_score,
by the mode of the recipe's ModelCheckpoint) also runs with the other seeds. The test set has no part in the choice.

A run is made again if its words or the content of one of its recipes have changed (lines of comment aside). Nothing else
counts: not the rows in a data file, not the code of a class of your own, not a version. All that it
writes is in its own folder below the study's: checkpoints, the adapter, predictions, whatever the recipe calls them.

--figure: for a study with one axis beside the columns, whose labels are numbers, as d: {1: ..., 10: ..., linear probe: ...}.
Rows that are no numbers are horizontal lines.

on a cluster, by Slurm:
  sbatch --array=1-8 --gpus=1 --wrap 'gpart study STUDY --shard $SLURM_ARRAY_TASK_ID/8'
  gpart study STUDY --table

on several machines, or several runs at once on this one, by Ray:
  gpart study STUDY --ray local --cpus-per-run 4             # a Ray of its own, on this machine
  gpart study STUDY --ray HEAD:6379 --gpus-per-run 1         # a cluster's, which 'ray start' has made
"""


def study_command(words: list[str], command: Sequence[str] = COMMAND) -> int:
    """``gpart study``: runs a study, lists its runs, or writes its table.

    Args:
        words: what the user typed after ``study``.
        command: what a run's words are appended to.

    Returns:
        0; 1 if a run failed; 130 if it was stopped by Ctrl-C.

    Raises:
        GPartError: if there is no such study, its file or ``--shard`` is wrong, or it names a recipe that is not there.
    """
    parser = Parser(
        prog="gpart study",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", metavar="STUDY", help="a file, or a shipped study's name (gpart configs lists them)")
    parser.add_argument("--shard", metavar="I/N", help="run only the I-th of N parts, where I starts at 1")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="",
        help="run on Ray: a cluster's address, or 'local'; without an address as Ray itself finds one",
    )
    parser.add_argument("--cpus-per-run", metavar="N", type=_amount, help="with --ray: the CPUs of each run; default 1")
    parser.add_argument("--gpus-per-run", metavar="N", type=_amount, help="with --ray: the GPUs of each run; default 0")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="list the runs, and start none")
    only.add_argument("--table", action="store_true", help="write the table of what is finished, and start no run")
    only.add_argument("--figure", action="store_true", help="as --table, and figure.png: the score over a row's number")
    asked = parser.parse_args(words)
    if (asked.table or asked.figure) and asked.shard:
        what = "--table" if asked.table else "--figure"
        raise GPartError(f"{what} is of the whole study; leave --shard {asked.shard} out")
    request = _request(asked)
    study = read_study(find_recipe(asked.study))
    cells = plan(study)
    mine = cells if asked.shard is None else shard_of(cells, *_shard(asked.shard))
    if not asked.table and not asked.figure:
        check_recipes(mine, request)
    if asked.dry_run:
        list_runs(mine)
        return 0
    failed = 0
    if not asked.table and not asked.figure:
        try:
            with _sigterm_raises():
                failed = _run(mine, command, request)
        except KeyboardInterrupt:
            print(
                "gpart study: stopped; what is finished is kept, and the same command goes on from here: a run that was not"
                " finished starts again from its first step"
            )
            return 130
    _write(study, cells, asked.figure)
    return 1 if failed else 0


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return value


def _request(asked: argparse.Namespace) -> RayRequest | None:
    """What is asked of Ray; None without ``--ray``."""
    if asked.ray is None:
        for option in ("cpus_per_run", "gpus_per_run"):
            if getattr(asked, option) is not None:
                raise GPartError(
                    f"--{option.replace('_', '-')} {getattr(asked, option):g} is for --ray, which is not given"
                )
        return None
    cpus = 1 if asked.cpus_per_run is None else asked.cpus_per_run
    return RayRequest(asked.ray or None, cpus, asked.gpus_per_run or 0)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise GPartError(f"--shard {text}: it is I/N, such as 1/8")
    return int(match[1]), int(match[2])


def _write(study: Study, cells: Sequence[Cell], figure: bool) -> None:
    results = collect(study, cells)
    drawn = None
    if figure:
        # Here, since matplotlib takes most of a second to import, and a study's runs need none of it.
        from gpart.studies.experiments.figure import curve_figure  # noqa: PLC0415

        drawn = curve_figure(results)
    files = write_table(results)
    if drawn is not None:
        files.append(study.folder / "figure.png")
        with replacing(files[-1]) as file:
            drawn.savefig(file, format="png")
    print(f"\n{markdown(results)}")
    print("written:", ", ".join(file.as_posix() for file in files))


def _run(cells: Sequence[Cell], command: Sequence[str], request: RayRequest | None) -> int:
    """Runs the cells; returns how many runs failed."""
    with shown(count_runs(cells)) as progress:
        if request is None:
            run_cells(cells, progress.tell, command)
        else:
            run_cells_on_ray(cells, progress.tell, request, command)
    return progress.failed


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Lets SIGTERM end the study as an exception does, so that its run is ended too and not left behind."""
    asked = 0

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        nonlocal asked
        asked = 128 + number
        raise SystemExit(asked)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set what a signal does
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit as error:
        raise SystemExit(asked or error.code) from None  # Ray puts a 1 in the place of the status, where it waits
    finally:
        signal.signal(signal.SIGTERM, before)
