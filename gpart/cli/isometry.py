"""``gpart isometry``: how a method's trainable vector moves the weights, measured."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console

from gpart.bases.current_folder import look_in_current_folder
from gpart.bases.models import quiet
from gpart.cli.message import Parser
from gpart.errors import GPartError
from gpart.injection.matching import ALL_LINEAR
from gpart.serialization.atomic import replacing
from gpart.studies.bench.figure import png
from gpart.studies.bench.machine import describe_machine, load
from gpart.studies.bench.report import markdown
from gpart.studies.bench.terminal import Shown, as_table
from gpart.studies.counting.params import Settings as Sizes
from gpart.studies.isometry.figure import isometry_figure
from gpart.studies.isometry.measuring import Row, Settings, measure
from gpart.studies.isometry.report import about, content, sheets
from gpart.studies.isometry.subjects import METHODS, Subject, find_runs, of_model, of_run
from gpart.studies.isometry.vector import NoAdapterError, NotFiniteError

DESCRIPTION = """Measures isometry: the singular values of the Jacobian from a method's trainable vector (without the head)
to the adapted weights. All of them 1, and equal steps of the vector move the weights equally far. And what a step of weight
decay does to ‖W - W0‖.

  gpart isometry MODEL      the methods as they start on this architecture; no weights are read
  gpart isometry RUN ...    finished runs, or a study's folder: at the start, at the end, and the distances along the way.
                            Of several, those without an adapter, or diverged, are left out"""

EPILOG = f"""methods: {", ".join(METHODS)}

A run is measured by its checkpoints. Let it keep the start and every n-th step:
  gpart fit --config quickstart --trainer.callbacks+=SnapshotWriter --trainer.callbacks.every_n_steps=10

examples:
  gpart isometry roberta-base --method gpart gpart-non-isometric lora fourierft
  gpart isometry packaged:minilm --d 7680 --lora-r 1 --vera-r 256 --fourierft-n 640 --output isometry
  gpart isometry runs/quickstart --output isometry
"""

SIZES = {
    "d": "length of theta, for GPart and Uni-LoRA",
    "lora_r": "LoRA's rank",
    "vera_r": "VeRA's rank",
    "fourierft_n": "FourierFT's coefficients in each adapted layer",
}
"""Of the methods on a MODEL."""

LANCZOS = {
    "steps": "steps of Lanczos, where there is no closed form",
    "starts": "random vectors that Lanczos starts from",
    "seed": "of what is drawn",
}


def isometry_command(words: list[str]) -> int:
    """Measures, prints the tables, and writes them with the JSON and the figure into a folder.

    Raises:
        GPartError: if there is no such model or run, a setting is wrong, or the folder has results already.
    """
    asked = _parser().parse_args(words)
    look_in_current_folder()
    folder = None if asked.output is None else Path(asked.output)
    if folder is not None and not asked.overwrite and (found := folder / "isometry.json").exists():
        raise GPartError(f"{found} is there already: give --overwrite, or another folder than --output {folder}")
    given = {name: value for name in SIZES if (value := getattr(asked, name)) is not None}
    targets = ALL_LINEAR if asked.target_modules == [ALL_LINEAR] else asked.target_modules
    sizes = Sizes(target_modules=targets, **given)
    settings = Settings(sizes, asked.steps, asked.starts, asked.seed)
    command, machine = shlex.join(["gpart", "isometry", *words]), describe_machine(torch.device("cpu"))
    runs = _runs(asked.subject)
    if runs and (more := [*(asked.method or []), *given, *(asked.target_modules or [])]):
        raise GPartError(f"{asked.subject[0]} is a run, which has its method and sizes: leave {more} out")
    rows: list[Row] = []
    left_out: dict[str, list[str]] = {}
    shown = Shown()
    with shown.progress:
        for subject in _subjects(asked, runs, settings, left_out):
            rows.append(measure(subject, settings, shown.tell))
            machine["load_at_end"] = load()
            if folder is not None:  # after each, so that one that is broken off leaves what it has
                _write(folder, {"isometry.json": _json(content(rows, settings, machine, command))})
    if not rows:
        raise GPartError(f"none of {list(runs)} has an adapter of finite numbers: isometry is of one")
    title = f"Isometry: {', '.join(asked.subject)}"
    tables = sheets(rows)
    console = Console(highlight=False, markup=False)
    for table in tables:
        console.print(as_table(table))
        console.print(table.note, soft_wrap=True)
    for why, names in left_out.items():
        console.print(f"left out, as they {why}: {', '.join(names)}", soft_wrap=True)
    if folder is not None:
        files = {
            "isometry.md": markdown(tables, about(title, machine, command)).encode(),
            "isometry.png": png(isometry_figure(rows, f"{title}, D = {rows[0].size:,}")),
        }
        _write(folder, files)
        console.print(f"written: {', '.join((folder / name).as_posix() for name in ['isometry.json', *files])}")
    return 0


def _parser() -> Parser:
    usual = Settings()
    parser = Parser(
        prog="gpart isometry",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "subject",
        nargs="+",
        metavar="MODEL|RUN",
        help="a name on the hub, packaged:NAME, a folder with a config.json; or folders with checkpoints",
    )
    parser.add_argument("--method", nargs="+", metavar="NAME", help="on a MODEL, see below; default: all")
    for name, says in SIZES.items():
        help_ = f"{says}; default: {getattr(usual.sizes, name)}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=help_)
    targets = f"the layers to adapt, by the ends of their names, or {ALL_LINEAR}; default: query and value"
    parser.add_argument("--target-modules", nargs="+", metavar="NAME", help=targets)
    for name, says in LANCZOS.items():
        parser.add_argument(
            f"--{name}", type=int, metavar="N", default=getattr(usual, name), help=f"{says}; default: %(default)s"
        )
    parser.add_argument("--output", metavar="FOLDER", help="write tables, JSON and a figure there; default: only print")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    return parser


def _runs(subjects: list[str]) -> dict[str, list[Path]]:
    """The runs that are meant, by their names; none where a model is.

    Raises:
        GPartError: if both are, or several models, or two runs would have one name.
    """
    runs: dict[str, list[Path]] = {}
    models = []
    for subject in subjects:
        folder = Path(subject)
        found = find_runs(folder) if folder.is_dir() and not (folder / "config.json").is_file() else {}
        if not found:
            models.append(subject)
        several = len(subjects) > 1
        for name, files in found.items():
            longer = f"{subject}/{name}" if len(found) > 1 else subject
            label = longer if several else name
            if runs.setdefault(label, files) != files:
                raise GPartError(
                    f"{runs[label][0].parent} and {files[0].parent} would both be called {label!r}: measure one at a time"
                )
    if models and len(subjects) > 1:
        raise GPartError(f"{models} have no checkpoints below them: give one MODEL, or one or more RUNs")
    return runs


def _subjects(
    asked: argparse.Namespace, runs: dict[str, list[Path]], settings: Settings, left_out: dict[str, list[str]]
) -> Iterator[Subject]:
    """What is measured. Of several runs, those without an adapter, or diverged, are left out, and ``left_out`` names them."""
    if not runs:
        yield from of_model(asked.subject[0], asked.method or METHODS, settings.sizes, settings.seed)
    for name, files in runs.items():
        try:
            with quiet():
                subject = of_run(name, files)
        except (NoAdapterError, NotFiniteError) as error:
            if len(runs) == 1:
                raise
            why = "have no adapter" if isinstance(error, NoAdapterError) else "have diverged"
            left_out.setdefault(why, []).append(name)
        else:
            yield subject


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        with replacing(folder / name) as file:
            file.write(data)
