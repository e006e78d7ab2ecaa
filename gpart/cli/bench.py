"""``gpart bench``: each method's time and memory, side by side."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from rich.console import Console

from gpart.cli.bench_words import SIZES, read, settings
from gpart.errors import GPartError
from gpart.serialization.atomic import replacing
from gpart.studies.bench import launch, launch_report, measuring, report, sweep_report
from gpart.studies.bench.figure import excess_figure, png, ratio_figure, sweep_figure
from gpart.studies.bench.launch import LaunchSettings
from gpart.studies.bench.machine import describe_machine, load
from gpart.studies.bench.report import Sheet
from gpart.studies.bench.settings import Settings, find_device
from gpart.studies.bench.sweep import SweepSettings, run_sweep
from gpart.studies.bench.terminal import Shown, as_table
from gpart.studies.bench.turns import Tell
from gpart.studies.counting.params import Settings as Sizes

R = TypeVar("R")


def bench_command(words: list[str]) -> int:
    """Measures, prints the tables, and writes them with every sample and a figure into a folder.

    Raises:
        GPartError: if a setting is wrong or does not fit the model, its folder has no ``config.json``, or the folder of
            the results has some already.
    """
    asked = read(words)
    folder = None if asked.output is None else Path(asked.output)
    if folder is not None and not asked.overwrite and (found := folder / f"{asked.kind}.json").exists():
        raise GPartError(f"{found} is there already: give --overwrite, or another folder than --output {folder}")
    given, command = settings(asked), shlex.join(["gpart", "bench", *words])
    if asked.kind == "bench":
        if asked.model is None:
            raise GPartError(
                "gpart bench: which MODEL? Or --launch, or --sweep for the operations expand and reduce alone"
            )
        _bench(asked.model, given, folder, command)
    elif asked.model is not None:
        raise GPartError(f"gpart bench --{asked.kind} takes no MODEL: leave {asked.model} out")
    elif asked.kind == "launch":
        _launch(given, folder, command)
    else:
        _sweep(given, folder, command)
    return 0


def _take(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """These settings, taken out of the others."""
    return {name: given.pop(name) for name in names if name in given}


def _bench(model: str, given: dict[str, Any], folder: Path | None, command: str) -> None:
    own = _take(given, *SIZES, "task", "target_modules")
    result = measuring.prepare(Settings(model, sizes=Sizes(**own), **given))
    machine = _measure(result.device, partial(measuring.run, result), report.content, folder, "bench", command)
    tables, about = report.sheets(result), report.about(result, machine, command)
    _finish(folder, "bench", tables, about, ratio_figure(result))


def _launch(given: dict[str, Any], folder: Path | None, command: str) -> None:
    sizes = replace(LaunchSettings().sizes, **_take(given, *SIZES))
    result = launch.prepare(LaunchSettings(sizes=sizes, **given))
    machine = _measure(result.device, partial(launch.run, result), launch_report.content, folder, "launch", command)
    tables, about = launch_report.sheets(result), launch_report.about(result, machine, command)
    _finish(folder, "launch", tables, about, excess_figure(result))


def _sweep(given: dict[str, Any], folder: Path | None, command: str) -> None:
    renamed = {"sweep_weights": "weights", "sweep_d": "ds"}
    points = SweepSettings(**{renamed.get(name, name): value for name, value in given.items()})
    machine = describe_machine(find_device(points.device))
    shown = Shown()
    with shown.progress:
        samples = run_sweep(points, lambda done, total: shown.tell("sweep", done, total))
    machine |= _afterwards()
    _write(folder, "sweep", sweep_report.content(points, samples, machine, command))
    tables, about = sweep_report.sheets(points, samples), sweep_report.about(machine, command)
    _finish(folder, "sweep", tables, about, sweep_figure(points, samples))


def _measure(
    device: torch.device,
    run: Callable[[Tell], Iterator[R]],
    content: Callable[[R, dict[str, Any], str], dict[str, Any]],
    folder: Path | None,
    name: str,
    command: str,
) -> dict[str, Any]:
    """Runs a bench part by part, and writes its JSON after each, so that one that is broken off leaves what it has.

    Returns:
        The machine's values.
    """
    machine = describe_machine(device)
    shown = Shown()
    with shown.progress:
        for so_far in run(shown.tell):
            machine |= _afterwards()
            _write(folder, name, content(so_far, machine, command))
    return machine


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
        console.print(as_table(table))
    if folder is None:
        return
    files = {f"{name}.md": report.markdown(tables, about).encode()}
    if figure is not None:
        files[f"{name}.png"] = png(figure)
    for file_name, content in files.items():
        with replacing(folder / file_name) as file:
            file.write(content)
    console.print(f"written: {', '.join((folder / each).as_posix() for each in [f'{name}.json', *files])}")
