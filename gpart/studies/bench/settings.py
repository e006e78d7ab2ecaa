"""What is measured: the settings of a bench, checked when they are made, and the methods by the words a user types.

Invariant: settings that exist are valid by themselves, and go to a process of its own as JSON and back unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from gpart.config import INDICES, WEIGHTS, IndicesSetting, WeightsSetting
from gpart.errors import GPartError
from gpart.studies.bench.checks import check_lists, check_numbers
from gpart.studies.counting.params import Settings as Sizes

FLOOR, FROZEN, FULL, LORA, GPART = "floor", "frozen", "full", "lora", "gpart"
KINDS = {
    FROZEN: "frozen",
    FLOOR: "floor",
    FULL: "full",
    LORA: "LoRA",
    "vera": "VeRA",
    "fourierft": "FourierFT",
    "unilora": "Uni-LoRA",
    GPART: "GPart",
}
"""The methods and their names in tables. ``frozen`` trains the head; ``floor`` is forward and backward pass of fully
fine-tuning the adapted weights, ``full`` the same with its optimizer step."""

METHODS = [*KINDS, "gpart:dropout=0.1", "gpart:indices=computed,weights=recomputed"]
"""What is compared unless told."""

PARTS = ["memory", "inject", "train", "eval", "generate"]
"""In the order in which they are measured: each method's memory first, while no model is there."""

PRECISIONS = ("32", "bf16-mixed", "bf16-true")


@dataclass(frozen=True)
class Method:
    """A method as it was asked for, such as ``gpart:indices=computed,weights=recomputed``."""

    text: str
    """As typed: its name in results."""

    kind: str
    """One of :data:`KINDS`."""

    dropout: float = 0.0
    """GPart's, on P·theta."""

    indices: IndicesSetting = "auto"
    """GPart's, see :mod:`gpart.materialize.policy`."""

    weights: WeightsSetting = "auto"
    """GPart's, see :mod:`gpart.materialize.policy`."""

    @property
    def label(self) -> str:
        """For tables.

        Example:
            >>> parse_method("gpart:indices=computed,weights=recomputed").label
            'GPart (indices computed, weights recomputed)'
        """
        _, _, options = self.text.partition(":")
        shown = options.replace("=", " ").replace(",", ", ")
        return f"{KINDS[self.kind]} ({shown})" if shown else KINDS[self.kind]


def parse_method(text: str) -> Method:
    """Reads ``lora``, or ``gpart`` with settings: ``gpart:dropout=0.1,indices=stored,weights=kept``.

    Raises:
        GPartError: if there is no such method or setting, or a value is none of the setting's.

    Example:
        >>> parse_method("gpart:dropout=0.1").dropout
        0.1
        >>> parse_method("prefix")
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: there is no method 'prefix'; there are frozen, floor, full, lora, vera, fourierft, unilora, gpart
    """
    kind, colon, options = text.partition(":")
    if kind not in KINDS:
        raise GPartError(f"there is no method {text!r}; there are {', '.join(KINDS)}")
    if colon and kind != GPART:
        raise GPartError(f"method {text!r}: only {GPART} has settings of its own")
    found: dict[str, Any] = {}
    for option in options.split(",") if colon else ():
        key, _, value = option.partition("=")
        choices = {"dropout": None, "indices": INDICES, "weights": WEIGHTS}
        if key not in choices:
            raise GPartError(f"method {text!r}: gpart has no setting {key!r}; it has {', '.join(choices)}")
        if key in found:
            raise GPartError(f"method {text!r} has {key} twice")
        allowed = choices[key]
        if allowed is not None and value not in allowed:
            raise GPartError(f"method {text!r}: {key} must be one of {', '.join(allowed)}, got {value!r}")
        found[key] = value if allowed is not None else _probability(text, value)
    return Method(text, kind, **found)


def parse_shape(text: str) -> tuple[int, int]:
    """Reads batch x tokens.

    Raises:
        GPartError: if it is no such thing.

    Example:
        >>> parse_shape("8x64")
        (8, 64)
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise GPartError(f"a shape is batch x tokens, such as 8x64; got {text!r}")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Settings:
    """One bench.

    Raises:
        GPartError: if a value is outside its range, with the value.
    """

    model: str
    """As :func:`gpart.studies.architectures.config` takes it; its weights are random."""

    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """As :func:`parse_method` reads them. A part's reference joins them where it is left out."""

    parts: list[str] = field(default_factory=lambda: list(PARTS))
    """Of :data:`PARTS`."""

    shapes: list[tuple[int, int]] = field(default_factory=lambda: [(8, 64)])
    """Batch and tokens."""

    accumulate: int = 1
    """Above 1, GPart and the floor are also timed with this many micro-batches of the first shape per step."""

    precision: str = "32"
    """One of :data:`PRECISIONS`, as Lightning's."""

    device: str = "auto"
    """The GPU if there is one, else the CPU."""

    threads: int | None = None
    """Of torch; None leaves them."""

    rounds: int = 15
    """Timed rounds."""

    warmup: int = 2
    """Rounds before."""

    seed: int = 0
    """Of the weights, the tokens and the order."""

    generate: str = "openai-community/gpt2"
    """The model that generates, where ``model`` is not a causal language model itself."""

    new_tokens: int = 64
    """Generated in one call."""

    sizes: Sizes = field(default_factory=Sizes)
    """Each method's size and what is adapted."""

    def __post_init__(self) -> None:
        check_numbers(self, accumulate=1, rounds=1, warmup=0, new_tokens=1, threads=1)
        if self.precision not in PRECISIONS:
            raise GPartError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        check_lists(self.methods, self.parts, self.shapes, PARTS)
        self.chosen()

    def chosen(self, *references: str) -> list[Method]:
        """The references and the methods, each once."""
        return choose([*references, *self.methods])

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def from_json(values: dict[str, Any]) -> Settings:
    """The settings that :meth:`Settings.to_json` gave.

    Example:
        >>> settings = Settings("roberta-base", shapes=[(2, 3)])
        >>> from_json(settings.to_json()) == settings
        True
    """
    shapes = [(batch, tokens) for batch, tokens in values["shapes"]]
    return Settings(**{**values, "shapes": shapes, "sizes": Sizes(**values["sizes"])})


def choose(names: Sequence[str]) -> list[Method]:
    """The methods of these names, each once."""
    return [parse_method(text) for text in dict.fromkeys(names)]


def find_device(name: str) -> torch.device:
    """The device of this name; ``"auto"`` is the GPU if there is one, else the CPU.

    Raises:
        GPartError: if there is no such device here.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # which the meta device cannot do
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise GPartError(f"device {name!r} cannot be used here: {error}") from error
    return device


def _probability(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise GPartError(f"method {text!r}: dropout must be a number from 0 to below 1, got {value!r}")
    return number
