"""That what theta learns arrives: its gradient, and the weights' precision.

Invariant: no run goes on with a theta that the loss does not depend on.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from gpart.adapter import GPartAdapter
from gpart.errors import GPartError
from gpart.injection.names import get_parameter
from gpart.injection.tensors import dense, whole


class FirstGradient:
    """Checks once, at the first step of theta's optimizer after a backward, that theta has a gradient.

    Lightning also steps where ``training_step`` has returned None, and StochasticWeightAveraging ends with an epoch
    without backward passes.
    """

    def __init__(self) -> None:
        self._backward = self._learned = False

    def after_backward(self) -> None:
        """Lightning has run a backward pass."""
        self._backward = True

    def before_step(self, adapter: GPartAdapter, group: dict[str, Any]) -> None:
        """Looks at theta's gradient.

        Args:
            adapter: the adapter.
            group: the parameter group that holds theta.

        Raises:
            GPartError: if it has none.
        """
        if self._learned:
            return
        self._learned = adapter.theta.grad is not None
        # In manual optimization loss.backward() may be called without Lightning's knowledge.
        if not self._learned and (self._backward or any(value.grad is not None for value in group["params"])):
            raise GPartError(
                f"theta has no gradient after the first backward: the loss does not depend on the adapted layers"
                f" {[weight.name for weight in adapter.plan.weights][:3]} ...; are they run, and with gradients"
                " enabled? Re-entrant checkpointing needs an input that requires grad (enable_input_require_grads)"
            )


@torch.no_grad()
def warn_of_lost_updates(adapter: GPartAdapter, rate: float) -> None:
    """In half precision a weight cannot hold an update below its spacing: theta may train and nothing change.

    Args:
        adapter: the adapter.
        rate: theta's learning rate; Adam's first step moves every entry of theta by about that.
    """
    length = max(float(adapter.values.norm()), rate * math.sqrt(adapter.config.d))
    update = length / math.sqrt(adapter.size)
    for weight in adapter.plan.weights:
        stored = get_parameter(adapter.model, weight.name)
        if stored.dtype not in (torch.bfloat16, torch.float16) or not stored.numel():  # FSDP 1's empty shards
            continue
        rms = float(whole(dense(stored)).float().square().mean().sqrt())
        spacing = torch.finfo(stored.dtype).eps * 2.0 ** math.floor(math.log2(rms)) if rms else 0.0
        if update < spacing:
            rank_zero_warn(
                f"{weight.name} is {stored.dtype} with spacing {spacing:.1e} at its size, and the update's rms"
                f" is {update:.1e}: most of it is lost in rounding. Train with float32 weights (32-true,"
                " bf16-mixed), a larger learning rate, or a larger d"
            )
            return
