"""What ``gpart`` can do, told without importing anything that does it.

Invariant: this module imports only Python's own, so that ``gpart --help`` and ``gpart --version`` answer at once.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command that is not LightningCLI's."""

    module: str
    """Imported when the command is asked for, since each pulls in libraries of its own."""

    function: str
    """Takes the words after the command and returns the exit status."""

    says: str
    """Its line in the overview."""


TRAINING = {
    "fit": "train with a recipe",
    "validate": "score a model on the validation set",
    "test": "score a model on the test set",
    "predict": "write or print a model's answers",
}
"""LightningCLI's own commands, which parse together; with their lines in the overview."""

COMMANDS = {
    "inspect": Command("gpart.cli.inspect_adapter", "inspect_command", "show an adapter, and its update by layer"),
    "diff": Command("gpart.cli.diff", "diff_command", "compare two adapters: settings, distance, cosine"),
    "combine": Command("gpart.cli.combine", "combine_command", "add up adapters of one layout"),
    "project": Command("gpart.cli.project", "project_command", "convert an adapter to another layout, with a loss"),
    "merge": Command("gpart.cli.merge", "merge_command", "write a base and an adapter as one plain model"),
    "export": Command("gpart.cli.export", "export_command", "write an adapter in another format, such as PEFT's LoRA"),
    "import": Command("gpart.cli.import_authors", "import_command", "convert an adapter of the paper's own code"),
    "push": Command("gpart.cli.hub", "push_command", "upload an adapter to the hub, with a model card"),
    "pull": Command("gpart.cli.hub", "pull_command", "download an adapter from the hub"),
    "serve": Command("gpart.cli.serve", "serve_command", "serve a base and a folder of adapters over HTTP"),
    "params": Command("gpart.cli.params", "params_command", "count what each method trains, and plan GPart's memory"),
    "configs": Command("gpart.cli.configs", "configs_command", "list the shipped recipes, or copy one to edit"),
    "study": Command("gpart.cli.study", "study_command", "run methods x tasks x seeds, and write their table"),
    "bench": Command("gpart.cli.bench", "bench_command", "measure each method's time and memory"),
    "landscape": Command(
        "gpart.cli.landscape", "landscape_command", "draw the loss around finished runs' trained points"
    ),
    "isometry": Command("gpart.cli.isometry", "isometry_command", "measure how a method's vector moves the weights"),
}
"""The others."""

LINES = {**TRAINING, **{name: command.says for name, command in COMMANDS.items()}}

ELSEWHERE = {"train": "fit", "evaluate": "validate", "generate": "predict"}
"""What other tools call a command that is here."""

_LISTED = "\n".join(f"  {name:<9} {line}" for name, line in LINES.items())

OVERVIEW = f"""usage: gpart COMMAND ...

Fine-tunes models with GPart, one global partition of the weights, or with a method that it is compared with.

commands:
{_LISTED}

options:
  -h, --help  show this text
  --version   show the version

examples:
  gpart fit --config quickstart
  gpart fit --config glue/rte --config methods/lora --trainer.max_epochs=3
  gpart params roberta-base

'gpart fit --help' lists the settings of a recipe, and 'gpart COMMAND --help' explains any command. A mistake is
reported in one line; GPART_TRACEBACK=1 in the environment shows the traceback instead.
"""


def unknown(word: str) -> str:
    """What to say about a first word that is no command.

    Example:
        >>> unknown("studdy")
        "there is no command 'studdy', did you mean study? There are fit, validate, test, predict, inspect, diff, combine, project, merge, export, import, push, pull, serve, params, configs, study, bench, landscape, isometry; 'gpart --help' explains them"
    """
    known = {name: name for name in LINES} | ELSEWHERE
    close = difflib.get_close_matches(word, known, n=1)
    meant = f", did you mean {known[close[0]]}?" if close else "."
    return f"there is no command {word!r}{meant} There are {', '.join(LINES)}; 'gpart --help' explains them"
