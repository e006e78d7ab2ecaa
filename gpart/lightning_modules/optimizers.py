"""AdamW with a learning rate and a weight decay for the head and for the rest, and Transformers' schedules."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
"""Our names and Transformers'."""


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
