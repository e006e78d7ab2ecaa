"""``gpart bench``: each method's time and memory, side by side."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gpart.cli.message import Parser
from gpart.injection.targets import ALL_LINEAR
from gpart.serialization.atomic import replacing
from gpart.studies.architectures import TASKS
from gpart.studies.bench import report, sweep_report
from gpart.studies.bench.figure import png, ratio_figure, sweep_figure
from gpart.studies.bench.machine import describe_machine, load
from gpart.studies.bench.measuring import prepare, run
from gpart.studies.bench.report import Sheet
from gpart.studies.bench.settings import KINDS, PARTS, PRECISIONS, Settings, find_device, parse_shape
from gpart.studies.bench.subject import TEXT
from gpart.studies.bench.sweep import SweepSettings, run_sweep
from gpart.studies.counting.params import Settings as Sizes

DESCRIPTION = """Times the methods on a model with random weights: training and evaluation steps, generation, injection;
and measures training's memory, each method in a process of its own. All methods' models are in memory together and take
turns, so that ratios hold on a machine that is not quiet."""

EPILOG = f"""methods: {", ".join(KINDS)}. 'floor' is forward and backward pass of fully fine-tuning the
adapted weights, which training is compared with; 'frozen' trains the head alone. GPart takes settings:
gpart:dropout=0.1  gpart:indices=stored,weights=kept  gpart:indices=computed,weights=recomputed

gpart bench roberta-base --shape 8x64 --shape 16x128 --accumulate 8 --threads 2 --output benchmarks/speed
gpart bench --sweep --threads 2 --output benchmarks/speed
"""


def bench_command(words: list[str]) -> int:
    """Measures, prints the tables, and writes them with every sample and a figure into a folder.

    Raises:
        ValueError: if a setting is wrong or does not fit the model, or the folder has results already.
        FileNotFoundError: if the model's folder has no ``config.json``.
    """
    asked = _parser().parse_args(words)
    name = "sweep" if asked.sweep else "bench"
    folder = None if asked.output is None else Path(asked.output)
    if folder is not None and not asked.overwrite and (found := folder / f"{name}.json").exists():
        raise ValueError(f"{found} is there already: give --overwrite, or another folder than --output {folder}")
    command = shlex.join(["gpart", "bench", *words])
    if asked.sweep:
        if asked.model is not None:
            raise ValueError(f"--sweep times the two passes without a model: leave {asked.model} out")
        _sweep(asked, folder, command)
    elif asked.model is None:
        raise ValueError("gpart bench: which MODEL? Or --sweep for the two passes alone")
    else:
        _bench(asked, folder, command)
    return 0


def _parser() -> Parser:
    usual, sizes, sweep = Settings(""), Sizes(), SweepSettings()
    parser = Parser(
        prog="gpart bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a name on the hub, a folder, or a config.json")
    parser.add_argument("--methods", nargs="+", metavar="NAME", default=usual.methods, help="see below; default: all")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=usual.parts, help="default: all")
    parser.add_argument(
        "--shape", action="append", metavar="BxT", help="batch x tokens, may be repeated; default: 8x64"
    )
    parser.add_argument("--accumulate", **whole, default=1, help="also time GPart and the floor with N micro-batches")
    parser.add_argument("--precision", choices=PRECISIONS, default=usual.precision, help="default: %(default)s")
    parser.add_argument("--rounds", **whole, default=usual.rounds, help="default: %(default)s")
    parser.add_argument("--warmup", **whole, default=usual.warmup, help="rounds before, default: %(default)s")
    parser.add_argument("--device", default=usual.device, help="default: the accelerator if there is one")
    parser.add_argument("--threads", **whole, help="torch's, on a CPU")
    parser.add_argument("--seed", **whole, default=usual.seed, help="default: %(default)s")
    parser.add_argument("--output", metavar="FOLDER", help="for tables, samples and figure; default: print only")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier bench wrote there")
    model = parser.add_argument_group("the methods and the model")
    model.add_argument("--d", **whole, default=sizes.d, help="GPart and Uni-LoRA, default: %(default)s")
    model.add_argument("--lora-r", **whole, default=sizes.lora_r, help="default: %(default)s")
    model.add_argument("--vera-r", **whole, default=sizes.vera_r, help="default: %(default)s")
    model.add_argument("--fourierft-n", **whole, default=sizes.fourierft_n, help="default: %(default)s")
    model.add_argument("--target-modules", nargs="+", metavar="NAME", help=f"layers to adapt, or {ALL_LINEAR}")
    model.add_argument("--task", choices=["auto", *(task for task in TASKS if task in TEXT)], default=sizes.task)
    model.add_argument("--generate", metavar="MODEL", default=usual.generate, help="default: %(default)s")
    model.add_argument("--new-tokens", **whole, default=usual.new_tokens, help="default: %(default)s")
    passes = parser.add_argument_group("the two passes alone")
    passes.add_argument("--sweep", action="store_true", help="time them over D and over d, without a model")
    passes.add_argument("--width", **whole, default=sweep.width, help="weights are N x N, default: %(default)s")
    passes.add_argument("--sweep-weights", nargs="+", **whole, default=sweep.weights, help="how many weights: D / N²")
    passes.add_argument("--at-weights", **whole, default=sweep.at_weights, help="in the sweep over d")
    passes.add_argument("--sweep-d", nargs="+", **whole, default=sweep.ds, help="default: 1 to D")
    return parser


def _bench(asked: argparse.Namespace, folder: Path | None, command: str) -> None:
    targets = ALL_LINEAR if asked.target_modules == [ALL_LINEAR] else asked.target_modules
    own = {name: getattr(asked, name) for name in ("d", "lora_r", "vera_r", "fourierft_n", "task")}
    same = (
        *("model", "methods", "parts", "accumulate", "precision", "device", "threads"),
        *("rounds", "warmup", "seed", "generate", "new_tokens"),
    )
    settings = Settings(
        shapes=[parse_shape(text) for text in asked.shape or ["8x64"]],
        sizes=Sizes(target_modules=targets, **own),
        **{name: getattr(asked, name) for name in same},
    )
    result = prepare(settings)
    machine = describe_machine(result.device)
    shown = _Shown()
    with shown.progress:
        # After each part, so that a bench that is broken off leaves what it has.
        for so_far in run(result, shown.tell):
            machine |= _afterwards()
            _write(folder, "bench", report.content(so_far, machine, command))
    tables, about = report.sheets(result), report.about(result, machine, command)
    _finish(folder, "bench", tables, about, ratio_figure(result))


def _sweep(asked: argparse.Namespace, folder: Path | None, command: str) -> None:
    same = ("width", "d", "at_weights", "device", "threads", "rounds", "warmup", "seed")
    settings = SweepSettings(
        weights=asked.sweep_weights, ds=asked.sweep_d, **{name: getattr(asked, name) for name in same}
    )
    machine = describe_machine(find_device(settings.device))
    shown = _Shown()
    with shown.progress:
        samples = run_sweep(settings, lambda done, total: shown.tell("sweep", done, total))
    machine |= _afterwards()
    _write(folder, "sweep", sweep_report.content(settings, samples, machine, command))
    tables, about = sweep_report.sheets(settings, samples), sweep_report.about(machine, command)
    _finish(folder, "sweep", tables, about, sweep_figure(settings, samples))


def _afterwards() -> dict[str, Any]:
    """What is known of the machine only once something was measured."""
    return {"threads": torch.get_num_threads(), "load_at_end": load()}


def _write(folder: Path | None, name: str, content: dict[str, Any]) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / f"{name}.json") as file:
            file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _finish(
    folder: Path | None, name: str, tables: Sequence[Sheet], about: Sequence[str], figure: Figure | None
) -> None:
    """Prints the tables, and writes them and the figure."""
    console = Console(highlight=False, markup=False)
    for table in tables:
        printed = Table(*table.header, box=SIMPLE, title=table.title, title_justify="left", title_style="bold")
        for column in printed.columns[1:]:
            column.justify = "right"
        for row in table.rows:
            printed.add_row(*row)
        console.print(printed)
    if folder is None:
        return
    files = {f"{name}.md": report.markdown(tables, about).encode()}
    if figure is not None:
        files[f"{name}.png"] = png(figure)
    for file_name, content in files.items():
        with replacing(folder / file_name) as file:
            file.write(content)
    console.print(f"written: {', '.join((folder / each).as_posix() for each in [f'{name}.json', *files])}")


class _Shown:
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
