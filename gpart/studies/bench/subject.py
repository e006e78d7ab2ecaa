"""The model that is measured, and each method applied to a copy of it.

Invariant: every contestant starts from the same random weights, on the same device and in the same precision; what it
trains is what ``gpart params`` counts for the method.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from gpart import GPartAdapter, GPartConfig, attach
from gpart.callbacks import LinearProbe
from gpart.errors import GPartError
from gpart.injection.matching import saved_parameters
from gpart.injection.targets import Plan, plan
from gpart.studies import architectures
from gpart.studies.architectures import build, default_head, default_targets, find_task
from gpart.studies.bench.settings import FROZEN, GPART, Method
from gpart.studies.counting.params import PEFT, apply_peft
from gpart.studies.counting.params import Settings as Sizes

TEXT = ("sequence-classification", "causal-lm")


@dataclass(frozen=True)
class Subject:
    """A model's architecture, and which part of it is adapted."""

    name: str
    """As it was asked for."""

    config: PretrainedConfig
    task: str
    sizes: Sizes
    precision: str

    targets: list[str] | str
    """The adapted layers."""

    head: list[str]
    """The modules that every method trains in full."""

    plan: Plan
    """The adapted weights; D is its size."""

    parameters: int
    """All of the model's, shared ones once."""

    def build(self, device: torch.device | str, seed: int) -> nn.Module:
        """The model on a device, with random weights from a seed, in train mode."""
        torch.manual_seed(seed)
        model = build(self.config, self.task, device)
        return (model.to(torch.bfloat16) if self.precision == "bf16-true" else model).train()

    def longest(self) -> int | None:
        """The most tokens that it takes, where the architecture says it."""
        most = getattr(self.config, "max_position_embeddings", None)
        if most is not None and "roberta" in str(self.config.model_type):
            most -= self.config.pad_token_id + 1  # its positions are counted from there
        return most

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """What a forward pass runs in."""
        if self.precision == "bf16-mixed":
            return torch.autocast(device.type, torch.bfloat16)
        return contextlib.nullcontext()


def find_subject(name: str, sizes: Sizes, precision: str) -> Subject:
    """The subject of this name, without any weights yet.

    Raises:
        GPartError: if the model is unknown or no text model, or a setting does not fit it.
        GPartFileError: if the folder has no ``config.json``.
    """
    config = architectures.config(name)
    task = find_task(config) if sizes.task == "auto" else sizes.task
    if task not in TEXT:
        raise GPartError(f"what is measured are {' and '.join(TEXT)} models; {name} is for {task}")
    return make_subject(name, config, task, sizes, precision)


def make_subject(name: str, config: PretrainedConfig, task: str, sizes: Sizes, precision: str) -> Subject:
    """The subject of an architecture that is there already.

    Args:
        name: what it is called in results.
        config: the architecture; the number of classes, and of the padding token if it has none, are written into it.
        task: one of :data:`TEXT`.
        sizes: each method's size and what is adapted.
        precision: Lightning's.

    Raises:
        GPartError: if a setting does not fit it.
    """
    config.num_labels = sizes.num_labels
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # classifiers on decoders look for it in a batch
    model = build(config, task)
    head = default_head(model, task) if sizes.modules_to_save is None else sizes.modules_to_save
    targets = default_targets(model, task) if sizes.target_modules is None else sizes.target_modules
    planned = plan(model, GPartConfig(sizes.d, targets, modules_to_save=head))
    count = sum(value.numel() for value in model.parameters())
    return Subject(name, config, task, sizes, precision, targets, head, planned, count)


def apply(method: Method, subject: Subject, model: nn.Module) -> GPartAdapter | None:
    """Applies a method to a model of the subject's, in place.

    Returns:
        GPart's adapter; None of the other methods.

    Raises:
        GPartError: if it cannot be applied to this model, with the method and the layers.
    """
    sizes, head = subject.sizes, subject.head
    if method.kind == GPART:
        config = GPartConfig(sizes.d, subject.targets, modules_to_save=head, dropout=method.dropout)
        return attach(model, config, indices=method.indices, weights=method.weights)
    if method.kind in PEFT:
        layers = list(dict.fromkeys(weight.owners[0][0] for weight in subject.plan.weights))
        try:
            apply_peft(method.kind, sizes, layers, head, model)
        except (ValueError, TypeError, NotImplementedError) as error:  # what PEFT raises for what it cannot do
            _, size, field = PEFT[method.kind]
            value = getattr(sizes, field)
            raise GPartError(
                f"{method.label} ({size} = {value}) cannot be applied to {subject.targets} of {subject.name}: {error}"
            ) from error
        return None
    LinearProbe(head).apply(model)
    if method.kind != FROZEN:
        for weight in subject.plan.weights:
            model.get_parameter(weight.name).requires_grad_(True)
    return None


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What requires a gradient, shared ones once."""
    return [value for value in model.parameters() if value.requires_grad]


def count_trained(method: Method, subject: Subject) -> int:
    """The numbers that a method trains beside the head, from a copy of the model on the meta device.

    Raises:
        GPartError: if the method cannot be applied to the model.
    """
    model = build(subject.config, subject.task)
    apply(method, subject, model)
    inside = {id(value) for value in head_parameters(model, subject)}
    return sum(value.numel() for value in trained_parameters(model) if id(value) not in inside)


def head_parameters(model: nn.Module, subject: Subject) -> list[nn.Parameter]:
    """The parameters of the head."""
    return [model.get_parameter(name) for name in saved_parameters(model, subject.head)[1]]
