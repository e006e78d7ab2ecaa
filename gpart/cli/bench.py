"""``gpart bench``: each method's time and memory, side by side."""

from __future__ import annotations

import argparse
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

from gpart.cli.message import Parser
from gpart.errors import GPartError
from gpart.injection.targets import ALL_LINEAR
from gpart.serialization.atomic import replacing
from gpart.studies.architectures import TASKS
from gpart.studies.bench import launch, launch_report, measuring, report, sweep_report
from gpart.studies.bench.figure import excess_figure, png, ratio_figure, sweep_figure
from gpart.studies.bench.launch import LaunchSettings
from gpart.studies.bench.machine import describe_machine, load
from gpart.studies.bench.report import Sheet
from gpart.studies.bench.settings import KINDS, PARTS, PRECISIONS, Settings, find_device, parse_shape
from gpart.studies.bench.subject import TEXT
from gpart.studies.bench.sweep import SweepSettings, run_sweep
from gpart.studies.bench.terminal import Shown, as_table
from gpart.studies.bench.turns import Tell
from gpart.studies.counting.params import Settings as Sizes

R = TypeVar("R")

DESCRIPTION = """Times the methods on a model with random weights: training and evaluation steps, generation, injection;
and measures training's memory, each method in a process of its own. All methods' models are in memory together and take
turns, so that ratios hold on a machine that is not quiet. With --launch the same where launching operations costs more than
arithmetic, on deep and narrow models of its own; with --sweep GPart's operations alone, without a model."""

EPILOG = f"""methods: {", ".join(KINDS)}. 'floor' is forward and backward pass of fully fine-tuning the
adapted weights, which training is compared with; 'frozen' trains the head alone. GPart takes settings:
gpart:dropout=0.1  gpart:indices=stored,weights=kept  gpart:indices=computed,weights=recomputed

gpart bench roberta-base --shape 8x64 --shape 16x128 --accumulate 8 --threads 2 --output benchmarks/speed
gpart bench --sweep --threads 2 --output benchmarks/speed
gpart bench --launch --output benchmarks/launch
"""

_EVERY = {"model": None, "kind": "bench", "output": None, "overwrite": False}
"""What every bench takes, and the default."""

_SIZES = ("d", "lora_r", "vera_r", "fourierft_n")
_CLOCK = ("device", "threads", "rounds", "warmup", "seed")
_STEPS = (*_SIZES, *_CLOCK, "methods", "parts", "shape", "new_tokens")
_OWN = {
    "bench": (*_STEPS, "target_modules", "task", "accumulate", "precision", "generate"),
    "launch": (*_STEPS, "layers", "width"),
    "sweep": (*_CLOCK, "d", "width", "sweep_weights", "at_weights", "sweep_d"),
}
"""What each takes besides."""


def bench_command(words: list[str]) -> int:
    """Measures, prints the tables, and writes them with every sample and a figure into a folder.

    Raises:
        GPartError: if a setting is wrong or does not fit the model, its folder has no ``config.json``, or the folder of
            the results has some already.
    """
    asked = _parser().parse_args(words)
    folder = None if asked.output is None else Path(asked.output)
    if folder is not None and not asked.overwrite and (found := folder / f"{asked.kind}.json").exists():
        raise GPartError(f"{found} is there already: give --overwrite, or another folder than --output {folder}")
    given, command = _given(asked), shlex.join(["gpart", "bench", *words])
    if asked.kind == "bench":
        if asked.model is None:
            raise GPartError("gpart bench: which MODEL? Or --launch, or --sweep for the two operations alone")
        _bench(asked.model, given, folder, command)
    elif asked.model is not None:
        raise GPartError(f"gpart bench --{asked.kind} takes no MODEL: leave {asked.model} out")
    elif asked.kind == "launch":
        _launch(given, folder, command)
    else:
        _sweep(given, folder, command)
    return 0


def _parser() -> Parser:
    usual, sizes, sweep, narrow = Settings(""), Sizes(), SweepSettings(), LaunchSettings()
    parser = Parser(
        prog="gpart bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not given keeps its bench's own default
    )
    parser.set_defaults(**_EVERY)
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    names: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}

    def default(name: str) -> str:
        return f"default: {getattr(usual, name)}, --launch: {getattr(narrow, name)}"

    parts = f"{' '.join(PARTS)}, --launch: {' '.join(launch.REFERENCES)}; default: all"
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a name on the hub, a folder, or a config.json")
    parser.add_argument("--methods", **names, help="see below; default: all, --launch: some")
    parser.add_argument("--parts", **names, help=parts)
    parser.add_argument("--shape", action="append", metavar="BxT", help="may be repeated; default: 8x64, --launch: 1x4")
    parser.add_argument("--accumulate", **whole, help="also time GPart and the floor with N micro-batches")
    parser.add_argument("--precision", choices=PRECISIONS, help=f"default: {usual.precision}")
    parser.add_argument("--rounds", **whole, help=default("rounds"))
    parser.add_argument("--warmup", **whole, help=f"rounds before, {default('warmup')}")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--threads", **whole, help="torch's, on a CPU; default: as they are, --launch: 1")
    parser.add_argument("--seed", **whole, help=f"default: {usual.seed}")
    parser.add_argument("--output", metavar="FOLDER", help="for tables, samples and figure; default: print only")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier bench wrote there")
    model = parser.add_argument_group("the methods and the model")
    model.add_argument("--d", **whole, help=f"GPart and Uni-LoRA, default: {sizes.d}, --launch: {narrow.sizes.d}")
    model.add_argument("--lora-r", **whole, help=f"default: {sizes.lora_r}")
    model.add_argument("--vera-r", **whole, help=f"default: {sizes.vera_r}")
    model.add_argument("--fourierft-n", **whole, help=f"default: {sizes.fourierft_n}")
    model.add_argument("--target-modules", **names, help=f"layers to adapt, or {ALL_LINEAR}")
    model.add_argument("--task", choices=["auto", *(task for task in TASKS if task in TEXT)])
    model.add_argument("--generate", metavar="MODEL", help=f"default: {usual.generate}")
    model.add_argument("--new-tokens", **whole, help=default("new_tokens"))
    own = parser.add_argument_group("without a MODEL")
    kinds = own.add_mutually_exclusive_group()
    same: dict[str, Any] = {"dest": "kind", "action": "store_const"}
    kinds.add_argument("--launch", **same, const="launch", help="where launching costs more than arithmetic")
    kinds.add_argument("--sweep", **same, const="sweep", help="the two operations over D and over d")
    width = f"--launch: of its models, default: {narrow.width}; --sweep: weights are N x N, default: {sweep.width}"
    own.add_argument("--width", **whole, help=width)
    own.add_argument("--layers", **whole, help=f"--launch: of its models, default: {narrow.layers}")
    own.add_argument("--sweep-weights", nargs="+", **whole, help="how many weights: D / N²")
    own.add_argument("--at-weights", **whole, help="in the sweep over d")
    own.add_argument("--sweep-d", nargs="+", **whole, help="default: 1 to D")
    return parser


def _given(asked: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, all of them the bench's own."""
    given = {name: value for name, value in vars(asked).items() if name not in _EVERY}
    for name, value in given.items():
        if name not in _OWN[asked.kind]:
            bench = "MODEL" if asked.kind == "bench" else f"--{asked.kind}"
            raise GPartError(f"gpart bench {bench} takes no --{name.replace('_', '-')}, got {value}")
    if "shape" in given:
        given["shapes"] = [parse_shape(text) for text in given.pop("shape")]
    return given


def _take(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """These settings, taken out of the others."""
    return {name: given.pop(name) for name in names if name in given}


def _bench(model: str, given: dict[str, Any], folder: Path | None, command: str) -> None:
    own = _take(given, *_SIZES, "task", "target_modules")
    if own.get("target_modules") == [ALL_LINEAR]:
        own["target_modules"] = ALL_LINEAR
    result = measuring.prepare(Settings(model, sizes=Sizes(**own), **given))
    machine = _measure(result.device, partial(measuring.run, result), report.content, folder, "bench", command)
    tables, about = report.sheets(result), report.about(result, machine, command)
    _finish(folder, "bench", tables, about, ratio_figure(result))


def _launch(given: dict[str, Any], folder: Path | None, command: str) -> None:
    sizes = replace(LaunchSettings().sizes, **_take(given, *_SIZES))
    result = launch.prepare(LaunchSettings(sizes=sizes, **given))
    machine = _measure(result.device, partial(launch.run, result), launch_report.content, folder, "launch", command)
    tables, about = launch_report.sheets(result), launch_report.about(result, machine, command)
    _finish(folder, "launch", tables, about, excess_figure(result))


def _sweep(given: dict[str, Any], folder: Path | None, command: str) -> None:
    renamed = {"sweep_weights": "weights", "sweep_d": "ds"}
    settings = SweepSettings(**{renamed.get(name, name): value for name, value in given.items()})
    machine = describe_machine(find_device(settings.device))
    shown = Shown()
    with shown.progress:
        samples = run_sweep(settings, lambda done, total: shown.tell("sweep", done, total))
    machine |= _afterwards()
    _write(folder, "sweep", sweep_report.content(settings, samples, machine, command))
    tables, about = sweep_report.sheets(settings, samples), sweep_report.about(machine, command)
    _finish(folder, "sweep", tables, about, sweep_figure(settings, samples))


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
