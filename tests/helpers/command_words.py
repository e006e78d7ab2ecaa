"""Running ``gpart`` in this process, and what it said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpart.cli import main


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What a command prints with ``--json``."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    read: dict[str, Any] = json.loads(capsys.readouterr().out)
    return read


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command refuses."""
    capsys.readouterr()
    assert main(list(words)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("gpart: error: ")
    assert said.err.count("\n") == 1
    return said.err
