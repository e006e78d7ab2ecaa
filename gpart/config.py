"""What an adapter is made of: :class:`GPartConfig`, checked when it is built.

Invariant: a config that exists is valid by itself; whether it fits a model is :mod:`gpart.targets`'s question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

BIAS_CHOICES = ("none", "all")


@dataclass(frozen=True)
class GPartConfig:
    """The settings of one GPart adapter: W = W0 + P·theta, theta of length ``d``.

    Raises:
        ValueError: if a value is not of its kind or outside its range.

    Example:
        >>> GPartConfig(d=23_040, target_modules=["query", "value"], modules_to_save=["classifier"]).seed
        0
        >>> GPartConfig(d=0, target_modules="all-linear")
        Traceback (most recent call last):
            ...
        ValueError: d must be a whole number, 1 or more, got 0
    """

    d: int
    """Number of groups, the length of theta and the only hyperparameter; from 1 (one shared number) to D, the number
    of adapted weights (full fine-tuning of them)."""

    target_modules: list[str] | str
    """Which layers to adapt, by PEFT's rules: a list of names or name endings (``["query", "value"]``), one regular
    expression for the whole name, or ``"all-linear"`` (every Linear and Conv1D layer but the output layer)."""

    modules_to_save: list[str] | None = None
    """Names or name endings of modules that are trained and stored in full: the head."""

    seed: int = 0
    """The 64-bit number that the groups come from."""

    exclude_modules: list[str] | str | None = None
    """Layers to leave out: names or name endings, or one regular expression for the whole name."""

    slices: dict[str, list[list[int]]] | None = None
    """For fused weights, which output features to adapt: a target's name or name ending, then ``[start, stop]`` pairs.
    ``{"qkv": [[0, 768], [1536, 2304]]}`` adapts q and v of a fused qkv of width 768, in the order and with the groups
    that separate layers would have."""

    bias: str = "none"
    """``"all"``: the adapted layers' biases join the adapted vector, each right after its weight. ``"none"``: not."""

    dropout: float = 0.0
    """Probability, in training, with which an entry of P·theta is dropped (paper's code: GLUE 0.1, math 0.05)."""

    isometric: bool = True
    """False leaves out 1/sqrt(n_j): the non-isometric variant of the paper's appendix B, an ablation."""

    def __post_init__(self) -> None:
        if not _whole(self.d) or self.d < 1:
            raise ValueError(f"d must be a whole number, 1 or more, got {self.d!r}")
        if not _whole(self.seed) or not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed must be a whole number between 0 and 2^64 - 1, got {self.seed!r}")
        if self.bias not in BIAS_CHOICES:
            raise ValueError(f"bias must be one of {', '.join(map(repr, BIAS_CHOICES))}, got {self.bias!r}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a number from 0 to below 1, got {self.dropout!r}")
        if not isinstance(self.isometric, bool):
            raise ValueError(f"isometric must be true or false, got {self.isometric!r}")
        # Lists of its own: a config does not change when the caller's list does, and tuples and YAML lists are equal.
        object.__setattr__(self, "target_modules", _patterns("target_modules", self.target_modules))
        if self.exclude_modules is not None:
            object.__setattr__(self, "exclude_modules", _patterns("exclude_modules", self.exclude_modules))
        if self.modules_to_save is not None:
            if isinstance(self.modules_to_save, str):
                raise ValueError(f"modules_to_save must be a list of names, got {self.modules_to_save!r}")
            saved = _patterns("modules_to_save", self.modules_to_save) if self.modules_to_save else None
            object.__setattr__(self, "modules_to_save", saved)
        object.__setattr__(self, "slices", _slices(self.slices) if self.slices else None)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, as they stand in files."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPartConfig:
        """The config that :meth:`to_dict` gave.

        Raises:
            ValueError: if a setting is unknown or missing (another version of gpart may have written it), or invalid.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise ValueError(
                f"the config's settings differ from this version's: unknown {sorted(set(values) - known)},"
                f" missing {sorted(known - set(values))}"
            )
        return cls(**values)

    def differences(self, other: GPartConfig) -> list[str]:
        """One line for every setting in which two configs differ, with both values."""
        mine, its = self.to_dict(), other.to_dict()
        return [f"{key} is {mine[key]!r} and {its[key]!r}" for key in mine if mine[key] != its[key]]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _patterns(field: str, value: object) -> list[str] | str:
    if isinstance(value, str):
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{field} is no valid regular expression: {value[:200]!r} ({error})") from None
        if value:
            return value
    elif isinstance(value, Sequence) and value and all(isinstance(item, str) and item for item in value):
        return list(value)
    elif isinstance(value, (set, frozenset)):
        raise ValueError(f"{field} must be a list, since a set has no order to store: {sorted(map(str, value))}")
    raise ValueError(f"{field} must be a non-empty list of names or a regular expression, got {value!r}")


def _slices(value: object) -> dict[str, list[list[int]]]:
    if not isinstance(value, dict):
        raise ValueError(f"slices must map a target's name to [start, stop] pairs, got {value!r}")
    result: dict[str, list[list[int]]] = {}
    for name, pairs in value.items():
        end = 0
        if not isinstance(name, str) or not isinstance(pairs, Sequence) or isinstance(pairs, str) or not pairs:
            raise ValueError(f"slices must map a target's name to [start, stop] pairs, got {name!r}: {pairs!r}")
        for pair in pairs:
            if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(_whole, pair)):
                raise ValueError(f"slices[{name!r}] must hold [start, stop] pairs of whole numbers, got {pair!r}")
            if not end <= pair[0] < pair[1]:
                raise ValueError(
                    f"slices[{name!r}] must be rising, non-empty and apart: [{pair[0]}, {pair[1]}] after {end}"
                )
            end = pair[1]
        result[name] = [list(pair) for pair in pairs]
    return result
