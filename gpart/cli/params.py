"""``gpart params``: the table of trained parameters by method."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from gpart.callbacks.table import readable_bytes
from gpart.cli.message import Parser
from gpart.config import INDICES, WEIGHTS
from gpart.errors import GPartError
from gpart.injection.matching import ALL_LINEAR
from gpart.studies.architectures import TASKS
from gpart.studies.counting.memory import DTYPES, LENGTH, MemoryPlan, MemorySettings, plan_memory, usual_length
from gpart.studies.counting.params import Report, Row, Settings, count_parameters

DESCRIPTION = """Counts the parameters that each method trains. It reads the model's architecture and none of its weights.
The head is left out of the counts, except for full fine-tuning. --memory also prints what training GPart keeps in memory
on a text model."""

MEMORY = {
    "weights": "weights of the model",
    "indices": "group indices",
    "adapted": "W0 + P·theta, forward to backward",
    "masks": "dropout masks",
    "gradient": "one layer's weight gradient",
    "trained": "theta and head, gradients, AdamW",
    "activations": "activations, forward to backward",
}
"""A row for each field of a memory plan."""

SIZES = {
    "d": "length of theta, for GPart and Uni-LoRA",
    "lora_r": "LoRA's rank",
    "vera_r": "VeRA's rank",
    "fourierft_n": "FourierFT's coefficients in each adapted layer",
    "num_labels": "classes of the head",
}
"""What decides how many parameters a method trains."""


def params_command(words: list[str]) -> int:
    """Prints the table, or the same as JSON.

    Raises:
        GPartError: if the model is unknown or its folder has no ``config.json``, or a setting does not fit it, or is of
            ``--memory`` and that is not asked for.
    """
    parser = _parser()
    asked = vars(parser.parse_args(words))
    name, as_json, with_memory = asked.pop("model"), asked.pop("json"), asked.pop("memory")
    if asked["target_modules"] == [ALL_LINEAR]:
        asked["target_modules"] = ALL_LINEAR
    own = ("batch_size", "length", "dtype", "dropout", "indices", "weights", "gradient_checkpointing")
    if not with_memory and (idle := parser.given(words, own)):
        raise GPartError(f"gpart params: {', '.join(idle)} counts with --memory only: give that, or leave it out")
    training = {key: asked.pop(key) for key in own}
    shared = {key: asked[key] for key in ("d", "target_modules", "modules_to_save", "task")}
    short = ""
    if with_memory and training["length"] is None:
        length = usual_length(name, asked["task"])
        short = " (the model has no more positions)" if length < LENGTH else ""
        training["length"] = length
    # Before the table, which takes longer: what is wrong is said at once.
    memory = plan_memory(name, MemorySettings(**shared, **training)) if with_memory else None
    report = count_parameters(name, Settings(**asked))
    if as_json:
        more = {} if memory is None else {"memory": {**training, **asdict(memory), "total": memory.total}}
        print(json.dumps({**asdict(report), **more}, indent=2))
        return 0
    _print(report)
    if memory is not None:
        _print_memory(memory, training | {"length": f"{training['length']}{short}"})
    return 0


def _parser() -> Parser:
    usual = Settings()
    parser = Parser(prog="gpart params", description=DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="a name on the hub, a folder, or a config.json")
    parser.add_argument(
        "--task",
        choices=["auto", *TASKS],
        default=usual.task,
        help="the task that the model is built for; default: auto, which takes the architecture's",
    )
    parser.add_argument(
        "--target-modules",
        nargs="+",
        metavar="NAME",
        help=f"the layers to adapt, by the ends of their names, or {ALL_LINEAR}; "
        "default: query and value, for causal-lm q, k, v and o",
    )
    parser.add_argument(
        "--modules-to-save", nargs="*", metavar="NAME", help="the head; default: the task's, if it has one"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    sizes = parser.add_argument_group("the methods' sizes")
    _add_numbers(sizes, SIZES, usual)
    _add_memory(parser.add_argument_group("GPart's training memory"), MemorySettings(d=usual.d))
    return parser


def _add_memory(group: argparse._ArgumentGroup, usual: MemorySettings) -> None:
    group.add_argument("--memory", action="store_true", help="print it, for the settings below")
    _add_numbers(group, {"batch_size": "examples in a micro-batch"}, usual)
    group.add_argument(
        "--length",
        type=int,
        metavar="N",
        help=f"tokens in each; default: {LENGTH}, or the model's positions if these are fewer",
    )
    group.add_argument(
        "--dtype", choices=list(DTYPES), default=usual.dtype, help="of weights and activations; default: %(default)s"
    )
    group.add_argument(
        "--dropout", type=float, metavar="P", default=usual.dropout, help="on P·theta; default: %(default)s"
    )
    group.add_argument(
        "--indices",
        choices=INDICES[1:],
        default=usual.indices,
        help="whether group indices are stored, or computed at each use; default: %(default)s",
    )
    group.add_argument(
        "--weights",
        choices=WEIGHTS[1:],
        default=usual.weights,
        help="whether W0 + P·theta is kept always, kept from forward to backward pass, or recomputed in the backward pass; default: %(default)s",
    )
    group.add_argument("--gradient-checkpointing", action="store_true", help="recompute activations")


def _add_numbers(group: argparse._ArgumentGroup, explained: dict[str, str], usual: Settings | MemorySettings) -> None:
    for name, says in explained.items():
        option = f"--{name.replace('_', '-')}"
        group.add_argument(
            option, type=int, metavar="N", default=getattr(usual, name), help=f"{says}; default: %(default)s"
        )


def _print(report: Report) -> None:
    names = report.target_modules if isinstance(report.target_modules, str) else " ".join(report.target_modules)
    about = Table.grid(padding=(0, 2))
    about.add_row("model", f"{report.model} ({report.task})")
    about.add_row("parameters", f"{report.total:,}")
    about.add_row("head", f"{report.head:,} ({' '.join(report.modules_to_save) or 'none'})")
    about.add_row("adapted weights", f"{report.adapted:,} ({names})")
    about.add_row("D", f"{report.size:,}")
    table = Table(box=SIMPLE)
    table.add_column("method", no_wrap=True)
    table.add_column("per adapted layer", justify="right")  # the one to be wrapped where it is too wide
    for name in ("global", "share", "float32"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        method = f"{row.method} ({row.setting})" if row.setting else row.method
        table.add_row(method, _per_layer(row), f"{row.count:,}", f"{row.percent:.4f} %", readable_bytes(row.bytes))
    console = Console(highlight=False)
    console.print(about)
    console.print(table)
    if report.head:
        console.print("Without the head, which full fine-tuning alone counts.")


def _print_memory(memory: MemoryPlan, training: dict[str, object]) -> None:
    words = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in training.items())
    table = Table(box=SIMPLE, title=f"GPart's training memory: {words}", title_justify="left", show_footer=True)
    table.add_column("kept in memory", footer="in all")
    table.add_column("GiB", justify="right", footer=f"{memory.total / 2**30:.2f}")
    for field, what in MEMORY.items():
        table.add_row(what, f"{getattr(memory, field) / 2**30:.2f}")
    Console(highlight=False).print(table)


def _per_layer(row: Row) -> str:
    if row.per_layer is None:
        return "global, shared"
    least, most = row.per_layer
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
