"""Counts how many parameters each method trains on a model, as in the paper's Table 5.

Invariant: the numbers are counted, and not computed by a formula. Each method is applied to a new model on the meta
device, which has shapes but no weights. Then the parameters that require a gradient are counted; a shared parameter
counts once, as torch lists it. The head (``modules_to_save``) counts in full fine-tuning only.
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
from gpart.errors import GPartError
from gpart.injection.matching import saved_parameters
from gpart.injection.names import split_name
from gpart.injection.targets import plan
from gpart.studies import architectures
from gpart.studies.architectures import build, default_head, default_targets, find_task


@dataclass(frozen=True)
class Settings:
    """The sizes of the methods, and the layers they are applied to. The defaults are the paper's for RoBERTa-base."""

    d: int = 23_040
    """The length of the one vector that GPart and Uni-LoRA train."""

    lora_r: int = 8
    """LoRA's rank."""

    vera_r: int = 1024
    """VeRA's rank; the paper has 256 for RoBERTa-large."""

    fourierft_n: int = 1000
    """FourierFT's coefficients per adapted layer."""

    target_modules: list[str] | str | None = None
    """The adapted layers, as in :class:`gpart.GPartConfig`. None takes query and value, and in a causal language model
    also key and output, by the names that the model has for them."""

    modules_to_save: list[str] | None = None
    """The head. None takes the modules outside the model's backbone, and in a causal language model none."""

    task: str = "auto"
    """A key of :data:`gpart.studies.architectures.TASKS`, or ``"auto"`` for the task that the architecture is for."""

    num_labels: int = 2
    """The number of the head's classes."""

    def __post_init__(self) -> None:
        for name in ("d", "lora_r", "vera_r", "fourierft_n", "num_labels"):
            if (value := getattr(self, name)) < 1:
                raise GPartError(f"{name} must be a whole number, 1 or more, got {value}")


@dataclass(frozen=True)
class Row:
    """The numbers of one method."""

    method: str
    """The method's name."""

    setting: str
    """The setting that its size depends on, such as ``"r = 8"``; empty if there is none."""

    per_layer: tuple[int, int] | None
    """The smallest and the largest number of trained parameters in an adapted layer; None if all layers share one
    vector."""

    count: int
    """The number of trained parameters; the head counts in full fine-tuning only."""

    percent: float
    """Their share of all the model's parameters, in percent."""

    bytes: int
    """Their size in bytes, as float32."""


@dataclass(frozen=True)
class Report:
    """The table of one model."""

    model: str
    """The model's name, as it was given."""

    task: str
    """The task that the model was built for."""

    total: int
    """The number of all its parameters, with the head. Shared parameters count once."""

    modules_to_save: list[str]
    """The head's modules."""

    head: int
    """The number of the head's parameters."""

    target_modules: list[str] | str
    """The adapted layers, as they were given or found."""

    adapted: int
    """The number of adapted weights."""

    size: int
    """D, the number of values in these weights."""

    rows: list[Row]
    """A row for each method."""


@dataclass(frozen=True)
class _Method:
    name: str
    setting: str
    apply: Callable[[nn.Module], object]
    shared: bool = False
    with_head: bool = False


def count_parameters(name: str, settings: Settings) -> Report:
    """Counts the parameters that each method trains.

    Args:
        name: the model's name, as :func:`gpart.studies.architectures.config` takes it.
        settings: the sizes of the methods, and the layers they are applied to.

    Raises:
        GPartFileError: if there is no such model, or the folder has no ``config.json``.
        GPartError: if the model's config can't be used, or a setting does not fit the model.

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
    # This comes first, since its errors say best what is wrong with the targets or with d.
    planned = plan(model, gpart)
    total = _count(model.parameters())
    head_paths, head_names = saved_parameters(model, head)
    layers = list(dict.fromkeys(weight.owners[0][0] for weight in planned.weights))
    rows = []
    biases = any(split_name(key)[1] == "bias" for key, _ in model.named_parameters())
    for method in _methods(settings, gpart, head, layers, biases):
        model_of_its_own = build(config, task)
        try:
            method.apply(model_of_its_own)
        except GPartError as error:
            raise GPartError(
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
"""PEFT's name of each method, PEFT's name of its size, and the field of :class:`Settings` that holds the size."""


def apply_peft(kind: str, settings: Settings, layers: list[str], head: list[str], model: nn.Module) -> None:
    """Applies a method of PEFT to a model, in place, as the callback does.

    Args:
        kind: a key of :data:`PEFT`.
        settings: the sizes of the methods.
        layers: the full names of the adapted layers.
        head: the modules that are trained in full.
        model: the model, which may be on the meta device.

    Raises:
        GPartError: if PEFT can't apply the method to these layers.
    """
    name, size, field = PEFT[kind]
    # FourierFT draws a permutation of each weight's positions, even for a model without weights. On the CPU, this would
    # take a minute for a 7B model, so that such a model's permutations are drawn on the meta device.
    meta = kind == "fourierft" and any(parameter.is_meta for parameter in model.parameters())
    try:
        with torch.device("meta") if meta else nullcontext():
            PeftCallback(name, layers, head or None, {size: getattr(settings, field)}).apply(model)
    except (ValueError, NotImplementedError) as error:  # the callback raises all other errors of PEFT as a ValueError
        raise GPartError(str(error)) from error


def _methods(settings: Settings, gpart: GPartConfig, head: list[str], layers: list[str], biases: bool) -> list[_Method]:
    """Returns the methods in the paper's order, as their callbacks apply them. PEFT gets the layers' full names."""

    def peft(kind: str) -> Callable[[nn.Module], None]:
        return partial(apply_peft, kind, settings, layers, head)

    return [
        _Method("Full fine-tuning", "", FullFineTuning().apply, with_head=True),
        _Method("Linear probe", "", LinearProbe(head).apply),
        # In a model without biases, BitFit trains only the head.
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
