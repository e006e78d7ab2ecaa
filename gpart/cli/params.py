"""``gpart params``: the table of trained parameters by method."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from gpart.callbacks.table import readable_bytes
from gpart.cli.message import Parser
from gpart.config import INDICES, WEIGHTS
from gpart.injection.targets import ALL_LINEAR
from gpart.studies.architectures import TASKS
from gpart.studies.counting.memory import DTYPES, MemoryPlan, MemorySettings, plan_memory
from gpart.studies.counting.params import Report, Row, Settings, count_parameters

DESCRIPTION = """Trained parameters by method, counted on the model's architecture: no weights are read. The head is
left out, but for full fine-tuning. --memory adds what training GPart on a text model keeps in memory."""

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


def params_command(words: list[str]) -> int:
    """Prints the table, or the same as JSON.

    Raises:
        GPartError: if the model is unknown or its folder has no ``config.json``, or a setting does not fit it.
    """
    standard = Settings()
    parser = Parser(prog="gpart params", description=DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="a name on the hub, a folder, or a config.json")
    parser.add_argument("--task", choices=["auto", *TASKS], default=standard.task, help="default: %(default)s")
    parser.add_argument("--num-labels", type=int, default=standard.num_labels, help="default: %(default)s")
    parser.add_argument(
        "--target-modules",
        nargs="+",
        metavar="NAME",
        help=f"layers to adapt, by name endings, or {ALL_LINEAR}; default: query and value, for causal-lm q, k, v and o",
    )
    parser.add_argument(
        "--modules-to-save", nargs="*", metavar="NAME", help="the head; default: the task's, if it has one"
    )
    parser.add_argument("--d", type=int, default=standard.d, help="GPart and Uni-LoRA, default: %(default)s")
    parser.add_argument("--lora-r", type=int, default=standard.lora_r, help="default: %(default)s")
    parser.add_argument("--vera-r", type=int, default=standard.vera_r, help="default: %(default)s")
    parser.add_argument("--fourierft-n", type=int, default=standard.fourierft_n, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--memory", action="store_true", help="plan GPart's memory for the following settings")
    usual = MemorySettings(d=standard.d)
    parser.add_argument("--batch-size", type=int, default=usual.batch_size, help="default: %(default)s")
    parser.add_argument("--length", type=int, default=usual.length, help="tokens, default: %(default)s")
    parser.add_argument("--dtype", choices=list(DTYPES), default=usual.dtype, help="default: %(default)s")
    parser.add_argument("--dropout", type=float, default=usual.dropout, help="on P·theta, default: %(default)s")
    parser.add_argument("--indices", choices=INDICES[1:], default=usual.indices, help="default: %(default)s")
    parser.add_argument("--weights", choices=WEIGHTS[1:], default=usual.weights, help="default: %(default)s")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="recompute activations")
    asked = vars(parser.parse_args(words))
    name, as_json, with_memory = asked.pop("model"), asked.pop("json"), asked.pop("memory")
    if asked["target_modules"] == [ALL_LINEAR]:
        asked["target_modules"] = ALL_LINEAR
    own = ("batch_size", "length", "dtype", "dropout", "indices", "weights", "gradient_checkpointing")
    training = {key: asked.pop(key) for key in own}
    shared = {key: asked[key] for key in ("d", "target_modules", "modules_to_save", "task")}
    # Before the table, which takes longer: what is wrong is said at once.
    memory = plan_memory(name, MemorySettings(**shared, **training)) if with_memory else None
    report = count_parameters(name, Settings(**asked))
    if as_json:
        more = {} if memory is None else {"memory": {**training, **asdict(memory), "total": memory.total}}
        print(json.dumps({**asdict(report), **more}, indent=2))
        return 0
    _print(report)
    if memory is not None:
        _print_memory(memory, training)
    return 0


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
