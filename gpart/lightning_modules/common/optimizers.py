"""AdamW with separate settings for the head and for all other parameters, and Transformers' schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from gpart.errors import GPartError

Schedule = Literal["linear", "cosine", "constant"]

SCHEDULES: dict[Schedule, str] = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
"""Transformers' name of each schedule."""


def check_schedule(schedule: Schedule, warmup_ratio: float) -> None:
    """Checks the two settings, before anything is built.

    Raises:
        GPartError: if there is no such schedule, or ``warmup_ratio`` is not from 0 to 1.
    """
    if schedule not in get_args(Schedule):
        raise GPartError(f"schedule must be one of {list(get_args(Schedule))}, got {schedule!r}")
    if not 0 <= warmup_ratio <= 1:
        raise GPartError(f"warmup_ratio must be from 0 to 1, got {warmup_ratio}")


def adamw_by_steps(module: LightningModule, network: nn.Module, head: Sequence[str]) -> OptimizerLRScheduler:
    """Makes the optimizer and the scheduler that ``configure_optimizers`` returns.

    The optimizer is AdamW with parameter groups for the head and for all other parameters. The scheduler steps after
    each optimizer step.

    Args:
        module: the LightningModule, with its trainer. It has the hyperparameters ``lr``, ``weight_decay``, ``schedule``
            and ``warmup_ratio``. It may have ``head_lr`` and ``head_weight_decay``; if they are missing or None, the
            head shares the other two.
        network: the module's network.
        head: the names of the head's modules in the network; empty if it has no settings of its own.

    Raises:
        GPartError: if there is no such head, or no parameter requires a gradient.
    """
    try:
        head_modules = [network.get_submodule(name) for name in head]
    except AttributeError:
        children = [child for child, _ in network.named_children()]
        raise GPartError(
            f"head={list(head)!r} is no submodule of {type(network).__name__}, which has {children}"
        ) from None
    settings: dict[str, Any] = dict(module.hparams)
    lr, decay = settings["lr"], settings["weight_decay"]
    head_lr, head_decay = settings.get("head_lr"), settings.get("head_weight_decay")
    optimizer = adamw(
        module,
        head_modules,
        lr=lr,
        head_lr=lr if head_lr is None else head_lr,
        weight_decay=decay,
        head_weight_decay=decay if head_decay is None else head_decay,
    )
    total = int(module.trainer.estimated_stepping_batches)
    schedule = scheduler(optimizer, settings["schedule"], settings["warmup_ratio"], total)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def adamw(
    module: nn.Module,
    head: Sequence[nn.Module],
    lr: float,
    head_lr: float,
    weight_decay: float,
    head_weight_decay: float,
) -> AdamW:
    """Makes an AdamW for every parameter that requires a gradient now.

    Biases and the parameters of normalisation layers have no weight decay, as in Transformers' Trainer
    (``get_decay_parameter_names``). An adapter's vectors have it.

    Args:
        module: the module whose parameters are trained.
        head: the submodules that have a learning rate and a weight decay of their own.
        lr: the learning rate of all parameters outside the head.
        head_lr: the learning rate of the head.
        weight_decay: the weight decay of all parameters outside the head.
        head_weight_decay: the weight decay of the head.

    Raises:
        GPartError: if no parameter requires a gradient.
    """
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not trained:
        raise GPartError(f"no parameter of {type(module).__name__} requires a gradient: there is nothing to train")
    in_head = {id(value) for part in head for value in part.parameters()}
    undecayed = _undecayed(module)
    groups = []
    for of_head, rate, decay in ((True, head_lr, head_weight_decay), (False, lr, weight_decay)):
        own = [value for value in trained.values() if (id(value) in in_head) is of_head]
        groups += [
            {"params": [value for value in own if id(value) not in undecayed], "lr": rate, "weight_decay": decay},
            {"params": [value for value in own if id(value) in undecayed], "lr": rate, "weight_decay": 0.0},
        ]
    return torch.optim.AdamW([group for group in groups if group["params"]])


def scheduler(optimizer: Optimizer, name: Schedule, warmup_ratio: float, steps: int) -> LambdaLR:
    """Makes a scheduler: a warm-up from 0 over ``round(warmup_ratio * steps)`` steps, and then the schedule.

    The schedules ``linear`` and ``cosine`` end with 0 at ``steps``.
    """
    schedule: LambdaLR = get_scheduler(
        SCHEDULES[name], optimizer, num_warmup_steps=round(warmup_ratio * steps), num_training_steps=steps
    )
    return schedule


def _undecayed(module: nn.Module) -> set[int]:
    normal = {
        id(value)
        for layer in module.modules()
        if "norm" in type(layer).__name__.lower()
        for value in layer.parameters(recurse=False)
    }
    biases = {id(value) for name, value in module.named_parameters() if name.split(".")[-1] == "bias"}
    return normal | biases
