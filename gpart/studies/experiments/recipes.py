"""The recipes that a run's words name: where they are, and what a run was made of.

Invariant: two command lines make the same run if their words agree, a recipe's content counts in place of its name, and
words that only say where its files go do not count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""The shipped recipes' folder."""

OWN_FOLDER = "--own_folder=true"
"""The word by which all that a run writes goes into its own folder. Runs of older versions were made without it."""

_CONFIG = "--config="
_NOTHING = re.compile(rb"^(#[^\n]*|\s*)(\n|\Z)", re.MULTILINE)
"""A line that YAML does not read. A # further right may be part of a text."""


def recipe_file(name: str) -> Path | None:
    """The file that ``--config=NAME`` means: one that exists, else a shipped recipe; None if there is neither."""
    shipped = CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
    return next((path for path in (Path(name), shipped) if path.is_file()), None)


def contents(words: Sequence[str]) -> list[str | None]:
    """What the recipes of a command line contain, as digests in their order; None for one that cannot be read.

    Comments that are lines of their own, and empty lines, are no content.

    Example:
        >>> contents(["fit", "--config=quickstart", "--model.lr=1"]) == contents(["--config=quickstart.yaml"])
        True
    """
    return [_digest(recipe_file(word.removeprefix(_CONFIG))) for word in words if word.startswith(_CONFIG)]


def difference(command: Mapping[str, Any], words: Sequence[str]) -> str | None:
    """How the run that a command.json tells of differs from what the words would make now; None if it does not.

    Args:
        command: its ``words``, and as ``recipes`` what :func:`contents` gave when the run started. Where that is not
            known, as in records of older versions, recipes are the same if their names are.
        words: a run's words.
    """
    theirs = command.get("words")
    if (
        not isinstance(theirs, list)
        or not all(isinstance(word, str) for word in theirs)
        or _others(theirs) != _others(words)
    ):
        return "it was run with other words"
    names = [[word for word in each if word.startswith(_CONFIG)] for each in (theirs, words)]
    if len(names[0]) != len(names[1]):
        return "it was run with other words"
    then = command.get("recipes") or [None] * len(names[0])
    if not isinstance(then, list) or len(then) != len(names[0]):
        return "its command.json is damaged"
    for old, new, old_content, content in zip(*names, then, contents(words), strict=True):
        if old_content is None or content is None:
            if old != new:
                return "it was run with other words"
        elif old_content != content:
            return f"the content of {new.removeprefix(_CONFIG)} has changed"
    return None


def _others(words: Sequence[str]) -> list[str]:
    return [word for word in words if word != OWN_FOLDER and not word.startswith(_CONFIG)]


def _digest(path: Path | None) -> str | None:
    try:
        return None if path is None else hashlib.sha256(_NOTHING.sub(b"", path.read_bytes())).hexdigest()[:16]
    except OSError:
        return None
