"""AdamW with a learning rate and a weight decay for the head and for the rest, and Transformers' schedules."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
"""Our names and Transformers'."""


def check_schedule(schedule: str, warmup_ratio: float) -> None:
    """Checks the two settings, before anything is built.

    Raises:
        ValueError: if there is no such schedule, or the warm-up is no part of the steps.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {list(SCHEDULES)}, got {schedule!r}")
    if not 0 <= warmup_ratio <= 1:
        raise ValueError(f"warmup_ratio must be from 0 to 1, got {warmup_ratio}")


def adamw_by_steps(module: LightningModule, network: nn.Module, head: str | None) -> OptimizerLRScheduler:
    """What ``configure_optimizers`` returns: AdamW with groups for the head and the rest, and a schedule by steps.

    Args:
        module: trained by a trainer; its hyperparameters ``lr``, ``head_lr``, ``weight_decay``, ``head_weight_decay``
            (the head's are None or absent for those of the rest), ``schedule`` and ``warmup_ratio`` are used.
        network: its network.
        head: the head's name in the network; None if it has none of its own.

    Raises:
        ValueError: if there is no such head, or nothing requires a gradient.
    """
    try:
        head_module = nn.Module() if head is None else network.get_submodule(head)
    except AttributeError:
        children = [child for child, _ in network.named_children()]
        raise ValueError(f"head={head!r} is no submodule of {type(network).__name__}, which has {children}") from None
    settings: dict[str, Any] = dict(module.hparams)
    lr, decay = settings["lr"], settings["weight_decay"]
    head_lr, head_decay = settings.get("head_lr"), settings.get("head_weight_decay")
    optimizer = adamw(
        module,
        head_module,
        lr=lr,
        head_lr=lr if head_lr is None else head_lr,
        weight_decay=decay,
        head_weight_decay=decay if head_decay is None else head_decay,
    )
    total = int(module.trainer.estimated_stepping_batches)
    schedule = scheduler(optimizer, settings["schedule"], settings["warmup_ratio"], total)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def adamw(
    module: nn.Module, head: nn.Module, lr: float, head_lr: float, weight_decay: float, head_weight_decay: float
) -> AdamW:
    """AdamW on every parameter that requires a gradient now.

    Biases and the parameters of normalisation layers are not decayed, as in Transformers' Trainer
    (``get_decay_parameter_names``); an adapter's vectors are.

    Args:
        module: whose parameters are trained.
        head: the module that has its own learning rate and weight decay.
        lr: of all but the head.
        head_lr: of the head.
        weight_decay: of all but the head.
        head_weight_decay: of the head.

    Raises:
        ValueError: if nothing requires a gradient.
    """
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not trained:
        raise ValueError(f"no parameter of {type(module).__name__} requires a gradient: there is nothing to train")
    in_head = {id(value) for value in head.parameters()}
    undecayed = _undecayed(module)
    groups = []
    for of_head, rate, decay in ((True, head_lr, head_weight_decay), (False, lr, weight_decay)):
        own = [value for value in trained.values() if (id(value) in in_head) is of_head]
        groups += [
            {"params": [value for value in own if id(value) not in undecayed], "lr": rate, "weight_decay": decay},
            {"params": [value for value in own if id(value) in undecayed], "lr": rate, "weight_decay": 0.0},
        ]
    return torch.optim.AdamW([group for group in groups if group["params"]])


def scheduler(optimizer: Optimizer, name: str, warmup_ratio: float, steps: int) -> LambdaLR:
    """A warm-up from 0 over ``round(warmup_ratio * steps)`` steps, then the schedule by that name, to 0 at ``steps``."""
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
