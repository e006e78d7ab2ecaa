"""What the data tells of the labels, for settings that nobody gave.

Invariant: what was said and what the data tells are never both right where they differ: that is an error with both values.
Only the classes' names may be others than the data's, all of them, in the data's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from lightning.pytorch import LightningModule

from gpart.errors import GPartError

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
"""Transformers' words for a task."""


@runtime_checkable
class TellsLabels(Protocol):
    """A DataModule that knows its labels, once its setup has run. ``labels`` and ``problem_type`` may be missing."""

    @property
    def num_labels(self) -> int | None:
        """The number of classes, or 1 for a regression; None if these rows have no labels."""


@dataclass(frozen=True)
class DataLabels:
    """The labels of a task."""

    num_labels: int
    """The number of classes, or 1 for a regression."""
    names: list[str] | None
    """The classes' names in the order of their numbers; None if they have none."""
    problem: Problem
    """The task."""


def problem_of(num_labels: int) -> Problem:
    """What a number of labels means where nothing else is said, as in Transformers.

    Example:
        >>> problem_of(1), problem_of(3)
        ('regression', 'single_label_classification')
    """
    return "regression" if num_labels == 1 else "single_label_classification"


def labels_told(module: LightningModule) -> DataLabels | None:
    """What the DataModule of a module's trainer tells; None without one that tells.

    Args:
        module: the LightningModule, in its ``setup`` or later: the DataModule's has run by then.
    """
    trainer = module._trainer  # the property of this name raises an error without a trainer
    data: Any = None if trainer is None else trainer.datamodule  # type: ignore[attr-defined]  # set by its data connector
    if not isinstance(data, TellsLabels) or data.num_labels is None:
        return None
    names: Sequence[Any] = getattr(data, "labels", None) or ()
    problem: Problem = getattr(data, "problem_type", None) or problem_of(data.num_labels)
    return DataLabels(int(data.num_labels), [str(name) for name in names] or None, problem)


def resolved_labels(said: dict[str, Any], told: DataLabels | None, default: int) -> DataLabels:
    """Puts together what was said, what the data tells, and the default.

    Args:
        said: the settings ``num_labels``, ``labels`` and ``problem_type``; None, or missing, where nothing was said.
        told: by the data.
        default: the number of labels where neither says one.

    Raises:
        GPartError: if they differ.

    Example:
        >>> resolved_labels({"num_labels": None}, DataLabels(2, ["no", "yes"], "single_label_classification"), 10)
        DataLabels(num_labels=2, names=['no', 'yes'], problem='single_label_classification')
        >>> resolved_labels({"labels": ["a", "b", "c"]}, None, 2).num_labels
        3
    """
    number, names, problem = (said.get(name) for name in ("num_labels", "labels", "problem_type"))
    names = None if names is None else [str(name) for name in names]
    if number is None and names is not None:
        number = len(names)
    if told is not None:
        _check("num_labels", number, told.num_labels)
        # Other names for the classes are a matter of taste; the same names elsewhere are a mistake.
        if names is not None and not set(names).isdisjoint(told.names or ()):
            _check("labels", names, told.names)
        _check("problem_type", problem, told.problem)
        number, names, problem = told.num_labels, names or told.names, told.problem
    number = default if number is None else number
    if number == 1 and names is not None:
        raise GPartError(f"labels names the classes, {names}, and num_labels=1 is a regression, which has none")
    return DataLabels(number, names, problem or problem_of(number))


def _check(setting: str, said: Any, told: Any) -> None:
    if said is not None and told is not None and said != told:
        raise GPartError(f"the model's {setting} is {said}, and the data's is {told}: leave it out to take the data's")
