"""The words that ``gpart bench`` takes, and which of its three benches takes which."""

from __future__ import annotations

import argparse
from typing import Any

from gpart.cli.message import Parser
from gpart.errors import GPartError
from gpart.injection.matching import ALL_LINEAR
from gpart.studies.architectures import TASKS
from gpart.studies.bench.launch import REFERENCES, LaunchSettings
from gpart.studies.bench.settings import KINDS, PARTS, PRECISIONS, Settings, parse_shape
from gpart.studies.bench.subject import TEXT
from gpart.studies.bench.sweep import SweepSettings

DESCRIPTION = """Times the methods on a model with random weights: training and evaluation steps, generation and injection.
It also measures the memory of training, each method in a process of its own. The models of all methods are in memory
together and take turns, so that ratios hold on a machine that is not quiet.

  gpart bench MODEL     times them on this model
  gpart bench --launch  times them where launching operations costs more than arithmetic, on deep and narrow models
  gpart bench --sweep   times GPart's operations expand and reduce alone, without a model"""

EPILOG = f"""methods: {", ".join(KINDS)}
  'floor' is the forward and backward pass of fully fine-tuning the adapted weights; training is compared with it.
  'frozen' trains the head alone.
  'gpart' takes settings: gpart:dropout=0.1  gpart:indices=stored,weights=kept  gpart:indices=computed,weights=recomputed

examples:
  gpart bench roberta-base --shape 8x64 --shape 16x128 --accumulate 8 --threads 2 --output benchmarks/speed
  gpart bench --sweep --threads 2 --output benchmarks/speed
  gpart bench --launch --output benchmarks/launch
"""

SIZES = ("d", "lora_r", "vera_r", "fourierft_n")
_EVERY = {"model": None, "kind": "bench", "output": None, "overwrite": False}
"""What every bench takes, and the default."""

_CLOCK = ("device", "threads", "rounds", "warmup", "seed")
_STEPS = (*SIZES, *_CLOCK, "methods", "parts", "shape", "new_tokens")
_OWN = {
    "bench": (*_STEPS, "target_modules", "task", "accumulate", "precision", "generate"),
    "launch": (*_STEPS, "layers", "width"),
    "sweep": (*_CLOCK, "d", "width", "sweep_weights", "at_weights", "sweep_d"),
}
"""What each takes besides."""

_PART = {"accumulate": "train", "generate": "generate", "new_tokens": "generate"}
"""What counts in one part alone."""

_WHOLE: dict[str, Any] = {"type": int, "metavar": "N"}


def read(words: list[str]) -> argparse.Namespace:
    """What the words ask for; what they leave out is not in it, so that it keeps the bench's own default.

    Raises:
        GPartError: if the words are no words of a bench.
    """
    parser = Parser(
        prog="gpart bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(**_EVERY)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a name on the hub, a folder, or a config.json")
    usual, narrow = Settings(""), LaunchSettings()
    _add_steps(parser, usual, narrow)
    _add_model(parser.add_argument_group("the methods and the model"), usual, narrow)
    _add_others(parser.add_argument_group("without a MODEL"), narrow, SweepSettings())
    return parser.parse_args(words)


def settings(asked: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, all of them the bench's own.

    Raises:
        GPartError: if one belongs to another bench, or to a part that is not measured.
    """
    given = {name: value for name, value in vars(asked).items() if name not in _EVERY}
    for name, value in given.items():
        if name not in _OWN[asked.kind]:
            bench = "MODEL" if asked.kind == "bench" else f"--{asked.kind}"
            raise GPartError(f"gpart bench {bench} takes no --{name.replace('_', '-')}, got {value}")
        if name in _PART and _PART[name] not in given.get("parts", [_PART[name]]):
            option = f"--{name.replace('_', '-')} {value}"
            raise GPartError(f"{option} is for the part {_PART[name]!r}; --parts are {' '.join(given['parts'])}")
    if "shape" in given:
        given["shapes"] = [parse_shape(text) for text in given.pop("shape")]
    if given.get("target_modules") == [ALL_LINEAR]:
        given["target_modules"] = ALL_LINEAR
    return given


def _default(name: str, usual: object, narrow: object) -> str:
    first, second = getattr(usual, name), getattr(narrow, name)
    return f"default: {first}" if first == second else f"default: {first}, with --launch {second}"


def _add_steps(parser: Parser, usual: Settings, narrow: LaunchSettings) -> None:
    def default(name: str) -> str:
        return _default(name, usual, narrow)

    parts = f"what is measured, of {', '.join(PARTS)}; with --launch, of {', '.join(REFERENCES)}; default: all"
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="what is compared, see below; default: all, with --launch some"
    )
    parser.add_argument("--parts", nargs="+", metavar="PART", help=parts)
    shape = "batch x tokens; may be given several times; default: 8x64, with --launch 1x4"
    parser.add_argument("--shape", action="append", metavar="BxT", help=shape)
    parser.add_argument("--accumulate", **_WHOLE, help="also time GPart and the floor with N micro-batches")
    parser.add_argument("--precision", choices=PRECISIONS, help=f"as Lightning's; default: {usual.precision}")
    parser.add_argument("--rounds", **_WHOLE, help=f"timed rounds; {default('rounds')}")
    parser.add_argument("--warmup", **_WHOLE, help=f"rounds before them; {default('warmup')}")
    parser.add_argument("--device", help="such as cpu or cuda:1; default: the GPU if there is one, else the CPU")
    parser.add_argument(
        "--threads", **_WHOLE, help="CPU threads of torch; default: as many as torch takes, with --launch 1"
    )
    parser.add_argument("--seed", **_WHOLE, help=f"of weights, tokens and order; default: {usual.seed}")
    parser.add_argument(
        "--output", metavar="FOLDER", help="write tables, samples and a figure there; default: only print"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier bench wrote to the folder")


def _add_model(group: argparse._ArgumentGroup, usual: Settings, narrow: LaunchSettings) -> None:
    sizes = usual.sizes
    theta = f"length of theta, for GPart and Uni-LoRA; {_default('d', sizes, narrow.sizes)}"
    group.add_argument("--d", **_WHOLE, help=theta)
    group.add_argument("--lora-r", **_WHOLE, help=f"LoRA's rank; {_default('lora_r', sizes, narrow.sizes)}")
    group.add_argument("--vera-r", **_WHOLE, help=f"VeRA's rank; {_default('vera_r', sizes, narrow.sizes)}")
    coefficients = f"FourierFT's coefficients in a layer; {_default('fourierft_n', sizes, narrow.sizes)}"
    group.add_argument("--fourierft-n", **_WHOLE, help=coefficients)
    targets = f"the layers to adapt, by the ends of their names, or {ALL_LINEAR}"
    group.add_argument("--target-modules", nargs="+", metavar="NAME", help=targets)
    group.add_argument(
        "--task",
        choices=["auto", *(task for task in TASKS if task in TEXT)],
        help="the task that the model is built for; default: auto, which takes the architecture's",
    )
    group.add_argument(
        "--generate", metavar="MODEL", help=f"the model that generates if the first cannot; default: {usual.generate}"
    )
    group.add_argument("--new-tokens", **_WHOLE, help=f"tokens to generate; {_default('new_tokens', usual, narrow)}")


def _add_others(group: argparse._ArgumentGroup, narrow: LaunchSettings, sweep: SweepSettings) -> None:
    kinds = group.add_mutually_exclusive_group()
    same: dict[str, Any] = {"dest": "kind", "action": "store_const"}
    kinds.add_argument("--launch", **same, const="launch", help="bench where launching costs more than arithmetic")
    kinds.add_argument("--sweep", **same, const="sweep", help="time expand and reduce over D and over d")
    width = f"with --launch, the width of its models, default: {narrow.width}; with --sweep, each weight is N x N, default: {sweep.width}"
    group.add_argument("--width", **_WHOLE, help=width)
    group.add_argument("--layers", **_WHOLE, help=f"with --launch, the layers of its models; default: {narrow.layers}")
    for name, values, says in (
        ("--sweep-weights", sweep.weights, "with --sweep, how many weights, over D"),
        ("--sweep-d", sweep.ds, "with --sweep, each d, over d"),
    ):
        group.add_argument(name, nargs="+", **_WHOLE, help=f"{says}; default: {' '.join(map(str, values))}")
    group.add_argument(
        "--at-weights", **_WHOLE, help=f"with --sweep, how many weights, over d; default: {sweep.at_weights}"
    )
