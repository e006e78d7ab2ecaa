"""What a row of ``tests/configs/paper/*.py`` is: a setting of a recipe, its source, and what differs from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ABSENT = object()
"""The recipe does not have the setting; the value is the class's default, which the source gives too."""


@dataclass(frozen=True)
class Value:
    """One setting. It is refused as incomplete without a source, or with another value and no reason."""

    setting: str
    """Its dotted name, as on the command line: ``model.lr``."""
    here: Any
    """What the recipe has, or ABSENT."""
    source: str
    """Where the value comes from: a table of the paper, its code, or the audit's row."""
    other: str = ""
    """What the paper has where ``here`` is the code's, or the other way round, as the recipe's header spells it."""
    why: str = ""
    """Why the recipe has ``here`` all the same."""

    @property
    def name(self) -> str:
        """The last part of its dotted name, by which the header speaks of it."""
        return self.setting.rpartition(".")[2]
