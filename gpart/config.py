"""What a user sets: :class:`GPartConfig`, what an adapter is, and :class:`MemoryPolicy`, what is kept in memory for it.

Invariant: settings that exist are valid by themselves; :mod:`gpart.injection.targets` finds out if they fit a model. A
field is written here and in the signature of :class:`gpart.callbacks.GPartCallback`, which a test holds to these; files,
comparisons and everything between pass the whole object on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from gpart.errors import GPartError

Bias = Literal["none", "all"]
SavedModules = list[str] | Literal["head"]
Projection = Literal["partition", "hash", "fastfood", "authors-stateless", "authors-materialized"]
IndicesSetting = Literal["auto", "stored", "computed"]
WeightsSetting = Literal["auto", "kept", "forward", "recomputed"]

PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
INDICES: tuple[IndicesSetting, ...] = get_args(IndicesSetting)
WEIGHTS: tuple[WeightsSetting, ...] = get_args(WeightsSetting)


@dataclass(frozen=True)
class GPartConfig:
    """The settings of one GPart adapter: W = W0 + P·theta, theta of length ``d``.

    Raises:
        GPartError: if a value is not of its kind or outside its range.

    Example:
        >>> GPartConfig(d=23_040, target_modules=["query", "value"], modules_to_save=["classifier"]).seed
        0
        >>> GPartConfig(d=0, target_modules="all-linear")
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: d must be a whole number, 1 or more, got 0
    """

    d: int
    """Number of groups, the length of theta and the only hyperparameter; from 1 (one shared number) to D, the number
    of adapted weights (full fine-tuning of them)."""

    target_modules: list[str] | str | None = None
    """Which layers to adapt, by PEFT's rules: a list of names or name endings (``["query", "value"]``), one regular
    expression for the whole name, ``"all-linear"`` (every Linear and Conv1D layer but the output layer), or
    ``"query-value"``, the attention's query and value projections by the names that the network has for them
    (:func:`gpart.injection.attention.query_value`; an attached adapter's config and its files have the names found). May
    be left out where ``target_parameters`` is given."""

    modules_to_save: SavedModules | None = None
    """Names or name endings of modules that are trained and stored in full: the head. ``"head"`` finds it by the network's
    own class (:func:`gpart.heads.head_modules`); an attached adapter's config and its files have the names found."""

    seed: int = 0
    """The 64-bit number that the groups come from."""

    exclude_modules: list[str] | str | None = None
    """Layers to leave out: names or name endings, or one regular expression for the whole name."""

    slices: dict[str, list[list[int]]] | None = None
    """For fused weights, which output features to adapt (of a transposed convolution, which inputs: its weight's first
    dimension is theirs): a target's name or name ending, then ``[start, stop]`` pairs.
    ``{"qkv": [[0, 768], [1536, 2304]]}`` adapts q and v of a fused qkv of width 768, in the order and with the groups
    that separate layers would have."""

    bias: Bias = "none"
    """``"all"``: the adapted layers' biases join the adapted vector, each right after its weight. ``"none"``: not."""

    dropout: float = 0.0
    """Probability, in training, with which an entry of P·theta is dropped (paper's code: GLUE 0.1, math 0.05)."""

    isometric: bool = True
    """False leaves out 1/sqrt(n_j): the non-isometric variant of the paper's appendix B, an ablation."""

    target_parameters: list[str] | str | None = None
    """Parameters to adapt besides, by their own names, where they are no layer's ``weight``: names or name endings
    (``["experts.gate_up_proj", "experts.down_proj"]``, ``["weight_ih_l0"]``), or one regular expression for the whole
    name. ``bias`` says nothing about them; ``slices`` cuts them along their first dimension."""

    projection: Projection = "partition"
    """The map P from theta to the update. ``"partition"``: balanced groups, the method itself. ``"hash"``: each weight's
    group is its hash, so that groups are of different sizes. ``"fastfood"``: a dense structured random map, isometric in
    the mean only. ``"authors-stateless"``, ``"authors-materialized"``: the groups of the paper's own code, for its files."""

    def __post_init__(self) -> None:
        if not _whole(self.d) or self.d < 1:
            raise GPartError(f"d must be a whole number, 1 or more, got {self.d!r}")
        if not _whole(self.seed) or not 0 <= self.seed < 1 << 64:
            raise GPartError(f"seed must be a whole number between 0 and 2^64 - 1, got {self.seed!r}")
        if self.bias not in get_args(Bias):
            raise GPartError(f"bias must be one of {', '.join(map(repr, get_args(Bias)))}, got {self.bias!r}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise GPartError(f"dropout must be a number from 0 to below 1, got {self.dropout!r}")
        if not isinstance(self.isometric, bool):
            raise GPartError(f"isometric must be true or false, got {self.isometric!r}")
        if self.projection not in PROJECTIONS:
            raise GPartError(f"projection must be one of {', '.join(map(repr, PROJECTIONS))}, got {self.projection!r}")
        if self.projection == "fastfood" and not self.isometric:
            raise GPartError(
                "isometric=False leaves out 1/sqrt(n_j), and projection='fastfood' has no groups of n_j weights"
            )
        # Lists of its own: a config does not change when the caller's list does, and tuples and YAML lists are equal.
        if self.target_parameters:
            object.__setattr__(self, "target_modules", self.target_modules or None)  # an empty list is PEFT's way
        else:
            object.__setattr__(self, "target_parameters", None)
        for field in ("target_modules", "target_parameters", "exclude_modules"):
            value = getattr(self, field)
            if value is not None or (field == "target_modules" and self.target_parameters is None):
                object.__setattr__(self, field, _patterns(field, value))
        if self.modules_to_save is not None:
            if isinstance(self.modules_to_save, str) and self.modules_to_save != "head":
                raise GPartError(f"modules_to_save must be a list of names or 'head', got {self.modules_to_save!r}")
            if not isinstance(self.modules_to_save, str):
                saved = _patterns("modules_to_save", self.modules_to_save) if self.modules_to_save else None
                object.__setattr__(self, "modules_to_save", saved)
        object.__setattr__(self, "slices", _slices(self.slices) if self.slices else None)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, as they stand in files."""
        return asdict(self)

    def differences(self, other: GPartConfig) -> list[str]:
        """One line for every setting in which two configs differ, with both values."""
        mine, its = self.to_dict(), other.to_dict()
        return [f"{key} is {mine[key]!r} and {its[key]!r}" for key in mine if mine[key] != its[key]]


@dataclass(frozen=True)
class MemoryPolicy:
    """What is kept in memory and what is computed when it is needed. Neither setting changes a result.

    Raises:
        GPartError: if one is not among its choices.

    Example:
        >>> MemoryPolicy(weights="sometimes")
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: weights must be one of 'auto', 'kept', 'forward', 'recomputed', got 'sometimes'
    """

    indices: IndicesSetting = "auto"
    """The group index of each adapted weight, two bytes where d is at most 32,768, else four. ``"stored"``: computed
    once and kept. ``"computed"``: by integer arithmetic inside each operation; nothing of the model's size is kept.
    ``"auto"``: stored where that takes at most a tenth of the device's memory."""

    weights: WeightsSetting = "auto"
    """W0 + P·theta. ``"kept"``: in memory that stays, computed once per optimizer step (with dropout once per forward
    pass). ``"forward"``: computed at each forward pass, kept until its backward pass. ``"recomputed"``: computed where a
    layer runs, and again in its backward pass; one layer's worth at a time. ``"auto"``: what takes the least time in a
    tenth of the device's memory."""

    def __post_init__(self) -> None:
        for name, choices in (("indices", INDICES), ("weights", WEIGHTS)):
            if (value := getattr(self, name)) not in choices:
                raise GPartError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _patterns(field: str, value: object) -> list[str] | str:
    if isinstance(value, str):
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise GPartError(f"{field} is no valid regular expression: {value[:200]!r} ({error})") from None
        if value:
            return value
    elif isinstance(value, (Sequence, set, frozenset)) and value and all(isinstance(one, str) and one for one in value):
        return list(value) if isinstance(value, Sequence) else sorted(value)  # the model's order counts, not this one
    raise GPartError(f"{field} must be a non-empty list of names or a regular expression, got {value!r}")


def _slices(value: object) -> dict[str, list[list[int]]]:
    if not isinstance(value, dict):
        raise GPartError(f"slices must map a target's name to [start, stop] pairs, got {value!r}")
    result: dict[str, list[list[int]]] = {}
    for name, pairs in value.items():
        end = 0
        if not isinstance(name, str) or not isinstance(pairs, Sequence) or isinstance(pairs, str) or not pairs:
            raise GPartError(f"slices must map a target's name to [start, stop] pairs, got {name!r}: {pairs!r}")
        for pair in pairs:
            if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(_whole, pair)):
                raise GPartError(f"slices[{name!r}] must hold [start, stop] pairs of whole numbers, got {pair!r}")
            if not end <= pair[0] < pair[1]:
                raise GPartError(
                    f"slices[{name!r}] must be rising, non-empty and apart: [{pair[0]}, {pair[1]}] after {end}"
                )
            end = pair[1]
        result[name] = [list(pair) for pair in pairs]
    return result
