"""What people want to know of an adapter, and its numbers do not need: base, task, labels, inputs, score.

Invariant: every fact may be missing. A file from before there were any reads as one that says nothing, and a fact that this
version does not know is left out: theta means the same without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from gpart.errors import GPartError


@dataclass(frozen=True)
class About:
    """The facts, as plain values."""

    base: str | None = None
    """The base model's name, as it was loaded: on the hub, ``packaged:NAME``, ``timm:NAME``, or a folder."""

    model_class: str | None = None
    """The class of the adapted module."""

    task: str | None = None
    """Such as ``classification``, ``regression``, ``multi-label``, ``causal-lm``."""

    labels: list[str] | None = None
    """The classes' names, in the order of the head's outputs."""

    inputs: dict[str, Any] = field(default_factory=dict)
    """Settings of the tokenizer or the pictures that the adapter was trained with, such as ``max_length``."""

    score: dict[str, Any] = field(default_factory=dict)
    """Of the step that the adapter is of: ``step``, and where a score chose it ``monitor`` and ``value``."""

    def to_dict(self) -> dict[str, Any]:
        """The facts that there are.

        Example:
            >>> About(base="FacebookAI/roberta-base", labels=["no", "yes"]).to_dict()
            {'base': 'FacebookAI/roberta-base', 'labels': ['no', 'yes']}
        """
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) not in (None, {})}

    def over(self, other: About) -> About:
        """These facts, and the other's where there is none here."""
        return About(**{**other.to_dict(), **self.to_dict()})


def read_about(values: Any, source: str) -> About:
    """The facts that :meth:`About.to_dict` gave.

    Raises:
        GPartError: if one is not what it has to be.

    Example:
        >>> read_about({"task": "regression", "colour": "blue"}, "a file")
        About(base=None, model_class=None, task='regression', labels=None, inputs={}, score={})
    """
    if not isinstance(values, Mapping):
        raise GPartError(f"{source}: about must be an object, got {values!r:.100}")
    known = {one.name: values[one.name] for one in fields(About) if one.name in values}
    for name, value in known.items():
        kinds = {"labels": list, "inputs": dict, "score": dict}
        if not isinstance(value, kinds.get(name, str)):
            raise GPartError(f"{source}: {name} must be a {kinds.get(name, str).__name__}, got {value!r:.100}")
    if not all(isinstance(label, str) for label in known.get("labels", ())):
        raise GPartError(f"{source}: labels must be texts, got {known['labels']!r:.100}")
    return About(**known)
