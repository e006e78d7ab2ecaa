"""How many parameters each method trains on a model: the paper's Table 5, by applying the methods and counting.

Invariant: nothing here is a formula. Each method is applied to a fresh model on the meta device, which has shapes and
no numbers, and what requires a gradient afterwards is counted, a shared parameter once, as torch lists it. The head,
which every method but full fine-tuning leaves out of its count, is what ``modules_to_save`` names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from gpart import GPartConfig, attach
from gpart.callbacks import BitFit, FullFineTuning, LinearProbe, PeftCallback
from gpart.injection.names import split_name
from gpart.injection.targets import plan, saved_parameters
from gpart.studies import architectures
from gpart.studies.architectures import build, default_head, default_targets, find_task


@dataclass(frozen=True)
class Settings:
    """What is compared on which part of the model; the defaults are the paper's for RoBERTa-base."""

    d: int = 23_040
    """Length of GPart's and Uni-LoRA's one vector."""

    lora_r: int = 8
    """LoRA's rank."""

    vera_r: int = 1024
    """VeRA's rank; the paper has 256 for RoBERTa-large."""

    fourierft_n: int = 1000
    """FourierFT's coefficients per adapted layer."""

    target_modules: list[str] | str | None = None
    """The adapted layers, as in :class:`gpart.GPartConfig`; None takes query and value, of a causal language model also
    key and output, by the names that the model has."""

    modules_to_save: list[str] | None = None
    """The head; None takes what the task's model has beside its backbone, of a causal language model nothing."""

    task: str = "auto"
    """One of :data:`gpart.studies.architectures.TASKS`, or ``"auto"``: by the architecture."""

    num_labels: int = 2
    """Classes of the head."""

    def __post_init__(self) -> None:
        for name in ("d", "lora_r", "vera_r", "fourierft_n", "num_labels"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be a whole number, 1 or more, got {value}")


@dataclass(frozen=True)
class Row:
    """One method's numbers."""

    method: str
    """Its name."""

    setting: str
    """What its size depends on, such as ``"r = 8"``; empty where nothing does."""

    per_layer: tuple[int, int] | None
    """Smallest and largest number in an adapted layer; None where one vector is shared by all layers."""

    count: int
    """Trained parameters, without the head but for full fine-tuning."""

    percent: float
    """Their share of all the model's parameters."""

    bytes: int
    """Their size as float32."""


@dataclass(frozen=True)
class Report:
    """The table of one model."""

    model: str
    """The name that was asked for."""

    task: str
    """What the model was built for."""

    total: int
    """All its parameters, shared ones once, with the head."""

    modules_to_save: list[str]
    """The head."""

    head: int
    """Its parameters."""

    target_modules: list[str] | str
    """The layers' names that were adapted."""

    adapted: int
    """How many weights they are."""

    size: int
    """D, the numbers in these weights."""

    rows: list[Row]
    """The methods."""


@dataclass(frozen=True)
class _Method:
    name: str
    setting: str
    apply: Callable[[nn.Module], object]
    shared: bool = False
    with_head: bool = False


def count_parameters(name: str, settings: Settings) -> Report:
    """Counts what each method trains.

    Args:
        name: as :func:`gpart.studies.architectures.config` takes it.
        settings: the methods' sizes and what they are applied to.

    Raises:
        ValueError: if the model is unknown, or a setting does not fit it.
        FileNotFoundError: if the folder has no ``config.json``.

    Example:
        >>> count_parameters("sentence-transformers/all-MiniLM-L6-v2", Settings(d=4608)).rows[-1].count
        4608
    """
    config = architectures.config(name)
    task = find_task(config) if settings.task == "auto" else settings.task
    config.num_labels = settings.num_labels
    model = build(config, task)
    head = default_head(model, task) if settings.modules_to_save is None else settings.modules_to_save
    targets = default_targets(model, task) if settings.target_modules is None else settings.target_modules
    gpart = GPartConfig(settings.d, targets, modules_to_save=head)
    # First of all, since this says what is wrong with the targets and d, and with both values.
    planned = plan(model, gpart)
    total = _count(model.parameters())
    head_paths, head_names = saved_parameters(model, head)
    layers = list(dict.fromkeys(weight.owners[0][0] for weight in planned.weights))
    rows = []
    biases = any(split_name(key)[1] == "bias" for key, _ in model.named_parameters())
    for method in _methods(settings, gpart, layers, biases):
        model_of_its_own = build(config, task)
        try:
            method.apply(model_of_its_own)
        except (ValueError, TypeError, NotImplementedError) as error:  # what PEFT raises for what it cannot do
            raise ValueError(
                f"{method.name} ({method.setting}) cannot be applied to {targets} of {name}: {error}"
            ) from error
        rows.append(_row(method, model_of_its_own, layers, head_paths, total))
    saved = _count(value for key, value in model.named_parameters() if key in head_names)
    return Report(name, task, total, head, saved, targets, len(planned.weights), planned.size, rows)


PEFT = {
    "lora": ("LORA", "r", "lora_r"),
    "vera": ("VERA", "r", "vera_r"),
    "fourierft": ("FOURIERFT", "n_frequency", "fourierft_n"),
    "unilora": ("UNILORA", "theta_d_length", "d"),
}
"""PEFT's name of a method, of its size, and the field of :class:`Settings` that it is in."""


def apply_peft(kind: str, settings: Settings, layers: list[str], head: list[str], model: nn.Module) -> None:
    """Applies one of :data:`PEFT` to a model, in place, as the callback does.

    Args:
        kind: a key of :data:`PEFT`.
        settings: the methods' sizes.
        layers: the adapted layers' full names.
        head: the modules that are trained in full.
        model: with or without numbers.

    Raises:
        ValueError: or TypeError or NotImplementedError, as PEFT has it, if the method does not fit the layers.
    """
    name, size, field = PEFT[kind]
    # FourierFT permutes every weight's positions to keep n of them, where there are no numbers too, unless told: a minute
    # for a 7B model.
    meta = kind == "fourierft" and any(parameter.is_meta for parameter in model.parameters())
    with torch.device("meta") if meta else nullcontext():
        PeftCallback(name, layers, head or None, {size: getattr(settings, field)}).apply(model)


def _methods(settings: Settings, gpart: GPartConfig, layers: list[str], biases: bool) -> list[_Method]:
    """The methods in the paper's order, as their callbacks apply them. PEFT gets the layers' full names."""
    head = list(gpart.modules_to_save or [])

    def peft(kind: str) -> Callable[[nn.Module], None]:
        return partial(apply_peft, kind, settings, layers, head)

    return [
        _Method("Full fine-tuning", "", FullFineTuning().apply, with_head=True),
        _Method("Linear probe", "", LinearProbe(head).apply),
        # Without a bias it has nothing but the head.
        _Method("BitFit", "", (BitFit if biases else LinearProbe)(head).apply),
        _Method("LoRA", f"r = {settings.lora_r}", peft("lora")),
        _Method("VeRA", f"r = {settings.vera_r}", peft("vera")),
        _Method("FourierFT", f"n = {settings.fourierft_n}", peft("fourierft")),
        _Method("Uni-LoRA", f"d = {settings.d}", peft("unilora"), shared=True),
        _Method("GPart", f"d = {settings.d}", partial(attach, config=gpart), shared=True),
    ]


def _row(method: _Method, model: nn.Module, layers: list[str], head: list[str], total: int) -> Row:
    def in_head(name: str) -> bool:
        return any(name.startswith(f"{path}.") for path in head)

    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    count = _count(value for name, value in trained if method.with_head or not in_head(name))
    each = [_count(value for value in model.get_submodule(path).parameters() if value.requires_grad) for path in layers]
    per_layer = None if method.shared else (min(each), max(each))
    return Row(method.name, method.setting, per_layer, count, 100 * count / total, 4 * count)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(value.numel() for value in parameters)
