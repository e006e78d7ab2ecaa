"""``gpart params``: the table of trained parameters by method."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from gpart.callbacks.table import readable_bytes
from gpart.cli.message import Parser
from gpart.studies.architectures import TASKS
from gpart.studies.params import Report, Row, Settings, count_parameters
from gpart.targets import ALL_LINEAR

DESCRIPTION = """Trained parameters by method, counted on the model's architecture: no weights are read. The head is
left out, but for full fine-tuning."""


def params_command(words: list[str]) -> int:
    """Prints the table, or the same as JSON.

    Raises:
        ValueError: if the model is unknown, or a setting does not fit it.
        FileNotFoundError: if the model's folder has no ``config.json``.
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
    asked = vars(parser.parse_args(words))
    name, as_json = asked.pop("model"), asked.pop("json")
    if asked["target_modules"] == [ALL_LINEAR]:
        asked["target_modules"] = ALL_LINEAR
    report = count_parameters(name, Settings(**asked))
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        _print(report)
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


def _per_layer(row: Row) -> str:
    if row.per_layer is None:
        return "global, shared"
    least, most = row.per_layer
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
