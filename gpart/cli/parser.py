"""The parser of ``gpart fit | validate | test | predict``: Lightning's, with mistakes in one line and a short ``--help``."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

# The rooms are imported so that recipes can name their classes by the short name.
import gpart.callbacks
import gpart.datamodules
import gpart.lightning_modules
from gpart.bases.own_classes import not_found
from gpart.callbacks.method import MethodCallback
from gpart.cli.mistyped import mistyped
from gpart.cli.short_help import short_help
from gpart.errors import GPartError

RECIPES = """A recipe is a YAML file of the settings below. --config takes a file or a shipped recipe's name ('gpart
configs' lists them). It may be given several times; a later one overrides an earlier one. A setting on the command line,
such as --trainer.max_epochs=3, overrides all of them."""

CLASSES = {
    "model": gpart.lightning_modules.__all__,
    "data": gpart.datamodules.__all__,
    "method": [
        name
        for name in gpart.callbacks.__all__
        if isinstance(found := getattr(gpart.callbacks, name), type) and issubclass(found, MethodCallback)
    ],
}
"""The short names that each key takes, for messages."""

HEADINGS = {
    "trainer": "Lightning's Trainer",
    "model": "the model and its task",
    "data": "the data",
    "method": "the method; without one, every weight is trained",
    "optimizer": "an optimizer in place of the model's own",
    "lr_scheduler": "its schedule",
}
"""Of the settings in ``--help``, by their key."""


class Parser(LightningArgumentParser):
    """Leaves telling a mistake to :func:`gpart.cli.main`, which does it in one line, without the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises it.

        Raises:
            GPartError: always, but in a parser that jsonargparse makes to try whether a value is one of a class.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        unknown = re.search(r'Parser key "([\w.]+)".*Expected a dot import path string: (\w+)', message, re.DOTALL)
        if unknown:
            own = f"gpart's are {', '.join(CLASSES[unknown[1]])}, others go" if unknown[1] in CLASSES else "classes go"
            message = (
                f"{unknown[1]}: there is no class {unknown[2]!r}; {own} by their import path, such as my_module.Mine"
            )
        else:
            message = not_found(message) or mistyped(message) or message
        if message.startswith("the following arguments are required"):
            message += "; a recipe gives them, as in gpart fit --config quickstart"
        raise GPartError(message) from ex


class ShortHelp(argparse._HelpAction):
    """``--help`` of a command. It is argparse's own action to jsonargparse, which leaves it out of the settings."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        """Prints the text and ends."""
        command = parser.prog.rpartition(" ")[2]
        known = {key: ", ".join(names) for key, names in CLASSES.items()}
        print(short_help(parser, command, HEADINGS, known), end="")
        parser.exit()


def add_help(parser: LightningArgumentParser) -> None:
    """Adds a short ``--help``, and ``--help-all`` for jsonargparse's, to a parser made without."""
    parser.add_argument("-h", "--help", action=ShortHelp, help="Show the settings that people set and exit.")
    parser.add_argument("--help-all", action="help", help="Show this text and exit.")
