"""The page of the command line, from the parsers themselves."""

from __future__ import annotations

import argparse
import re
from contextlib import suppress
from importlib import import_module
from unittest.mock import patch

from gpart.cli.commands import COMMANDS, TRAINING
from gpart.cli.message import Parser

HEAD = """# Command line

This page is made from the commands' parsers. `gpart COMMAND --help` prints the same. A mistake is one line on standard error and
exit status 2; `GPART_TRACEBACK=1` in the environment shows its traceback instead.

"""

TRAIN = """Lightning's CLI. `--config FILE_OR_NAME` is a file or a [shipped recipe](recipes.md), may be given several times, and a later
one goes over an earlier one. Words such as `--trainer.max_epochs 3` go over them all.

| keys | what they set |
| --- | --- |
| `--model.*` | the LightningModule: [API](lightning_modules.md) |
| `--data.*` | the DataModule: [API](datamodules.md) |
| `--method.*` | the method, [a callback](callbacks.md); without one every weight is trained |
| `--trainer.*` | Lightning's Trainer |
| `--optimizer`, `--lr_scheduler` | in the place of the model's own |
| `--seed_everything` | the run's seed |
| `--ckpt_path` | a checkpoint; `last` and `best` mean the newest run in the run's own folder |
| `--print_config` | shows what results, and runs nothing |
| `--help`, `--help-all` | the settings that people set most, and all of them |
| `--method.help GPartCallback` | a class's settings; `--model.help` and `--data.help` do the same |

"""


class _FoundError(Exception):
    """Brings a command's parser out of it, in the place of parsing."""


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of one of gpart's own commands."""

    def stop(self: Parser, words: object = None) -> None:
        raise _FoundError(self)

    command = COMMANDS[name]
    function = getattr(import_module(command.module), command.function)
    with patch.object(Parser, "parse_args", stop), patch.object(Parser, "parse_intermixed_args", stop):
        try:
            function([])
        except _FoundError as found:
            return found.args[0]  # type: ignore[no-any-return]
    raise RuntimeError(f"gpart {name} parses nothing")


def training_parser() -> argparse.ArgumentParser:
    """The parser of fit, validate, test and predict."""
    from gpart.cli import training  # noqa: PLC0415  # Lightning, which the other commands do not need

    class Caught(training.GPartCLI):
        def parse_arguments(self, parser: argparse.ArgumentParser, args: object) -> None:
            raise _FoundError(parser)

    with patch.object(training, "GPartCLI", Caught):
        try:
            training.run(["fit"])
        except _FoundError as found:
            return found.args[0]  # type: ignore[no-any-return]
    raise RuntimeError("gpart fit parses nothing")


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## Training\n\n"]
    parts += [f"### gpart {name}\n\n{_sentence(line)}\n\n" for name, line in TRAINING.items() if name == "fit"]
    parts += [TRAIN, _own_words()]
    parts += [
        f"### gpart {name}\n\n{_sentence(line)} The same keys as `gpart fit`.\n\n"
        for name, line in TRAINING.items()
        if name != "fit"
    ]
    parts.append("## The others\n\n")
    for name, command in COMMANDS.items():
        parser = parser_of(name)
        parts.append(
            f"### gpart {name}\n\n{_sentence(command.says)}\n\n```text\n{_usage(parser)}\n```\n\n{_prose(parser.description)}"
        )
        parts.append(_arguments(parser))
        parts.append(_prose(parser.epilog))
    return "".join(parts)


def _sentence(line: str) -> str:
    return line[0].upper() + line[1:] + "."


def _usage(parser: argparse.ArgumentParser) -> str:
    with patch.dict("os.environ", COLUMNS="76"):
        lines = parser.format_usage().removeprefix("usage: ").rstrip().splitlines()
    return "\n".join([lines[0], *("  " + line.strip() for line in lines[1:])])


def _prose(text: str | None) -> str:
    if not text:
        return ""
    kept = text % {"prog": "gpart"} if "%(prog)s" in text else text
    lines = kept.strip("\n").splitlines()
    if any(line.startswith("  ") for line in lines):  # laid out: a file's form, a table
        return "```text\n" + "\n".join(lines) + "\n```\n\n"
    return " ".join(lines).replace("*", r"\*").replace("<", "&lt;") + "\n\n"


def _arguments(parser: argparse.ArgumentParser) -> str:
    rows = [_row(parser, action) for action in parser._actions if action.dest != "help"]
    return "| word | what it does |\n| --- | --- |\n" + "".join(rows) + "\n" if rows else ""


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    word = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if action.option_strings and action.nargs != 0:
        value = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
        word += f" {value}"
    told = ""
    with suppress(KeyError, ValueError, TypeError):
        told = formatter._expand_help(action) if action.help else ""
    if (
        action.default not in (None, False, argparse.SUPPRESS, [], ())
        and "default" not in told
        and action.option_strings
    ):
        told += f" (default: {action.default})"
    return f"| `{word}` | {_cell(told)} |\n"


def _cell(told: str) -> str:
    """A help text in a table; words that begin with two hyphens are code."""
    plain = " ".join(told.split()).replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")
    return re.sub(r"(?<![\w`-])--[\w.-]*\w", r"`\g<0>`", plain)


def _own_words() -> str:
    """The training commands' words that are GPart's and not Lightning's."""
    commands = training_parser()._subcommands_action.choices  # type: ignore[attr-defined]
    own = {"--test_best", "--resume", "--own_folder", "--output"}
    rows: dict[str, tuple[list[str], str]] = {}
    for name in TRAINING:
        for action in commands[name]._actions:
            for word in own.intersection(action.option_strings):
                rows.setdefault(word, ([], _cell(action.help or "")))[0].append(name)
    lines = "".join(f"| `{word}` | {', '.join(names)} | {told} |\n" for word, (names, told) in rows.items())
    return f"Beside Lightning's own:\n\n| word | of | what it does |\n| --- | --- | --- |\n{lines}\n"
