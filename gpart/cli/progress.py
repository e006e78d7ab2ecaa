"""What a run shows on its way: a bar in a terminal, lines in a pipe or a log file. Both count epochs from 1."""

from __future__ import annotations

import math
import sys
import time
from datetime import timedelta
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from torch import Tensor

from gpart.callbacks.method import MethodCallback

SECONDS = 10.0
"""Between two lines, if a tenth of an epoch takes longer."""

LEAST = 1.0
"""Between two lines, if it takes less: a log of a thousand short epochs is still one that can be read."""


class EpochBar(RichProgressBar):
    """Lightning's bar, but for the epochs: the first of three is 1/3, where Lightning's own is 0/2."""

    def _get_train_description(self, current_epoch: int) -> str:
        text = f"Epoch {_epoch(self.trainer, current_epoch)}"
        return f"{text:{len(self.validation_description)}}"  # as wide as the bar below it, else it flickers


class TrainedWeights(Callback):
    """Prints how many weights are trained where no method does, whose table would say it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints it."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
        if trainer.is_global_zero and not any(isinstance(each, MethodCallback) for each in callbacks):
            trained = sum(value.numel() for value in pl_module.parameters() if value.requires_grad)
            print(
                f"no method: {trained:,} of {sum(value.numel() for value in pl_module.parameters()):,} weights are trained"
            )


class ProgressLines(Callback):
    """Prints a line after the first step, then every ten seconds or every tenth of an epoch, and after the last step.

    At most one a second.
    Not where there is a bar.
    """

    def __init__(self) -> None:
        self._start = self._told = 0.0
        self._first, self._total = 0, math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start, self._told, self._first = time.monotonic(), -math.inf, trainer.global_step
        try:
            total = trainer.estimated_stepping_batches
        except MisconfigurationException:  # it can't be known, as where accumulate_grad_batches changes on the way
            total = math.inf
        self._total = total if total >= 0 else math.inf  # endless data

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints the line, if it is time."""
        if trainer.progress_bar_callback is not None or not trainer.is_global_zero:
            return
        now, batches = time.monotonic(), trainer.num_training_batches
        tenths = [int(10 * done / batches) for done in (batch_idx, batch_idx + 1)]
        waited = now - self._told
        due = waited >= SECONDS or (waited >= LEAST and tenths[0] < tenths[1])
        if due or trainer.global_step >= self._total:
            self._told = now
            print(self._line(trainer, outputs, now - self._start), flush=True)

    def _line(self, trainer: Trainer, outputs: Any, seconds: float) -> str:
        total, done = self._total, trainer.global_step - self._first
        endless = math.isinf(total)
        parts = [
            f"epoch {_epoch(trainer, trainer.current_epoch)}",
            f"step {trainer.global_step}{'' if endless else f'/{int(total)}'}",
        ]
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            # Lightning has divided it, for the sum of the gradients.
            parts.append(f"loss {loss.item() * trainer.accumulate_grad_batches:.4f}")
        if trainer.optimizers:
            parts.append(f"lr {max(group['lr'] for group in trainer.optimizers[0].param_groups):.3g}")
        if done > 0 and seconds > 0:
            parts.append(f"{done / seconds:.3g} steps/s")
            if not endless:
                left = max(total - trainer.global_step, 0) * seconds / done
                parts.append(f"{timedelta(seconds=round(left))} left")
        return "  ".join(parts)


def shown_progress(trainer: dict[str, Any]) -> list[Callback]:
    """The callbacks that show a run's progress, by the Trainer's settings; there is no bar where no terminal is.

    Args:
        trainer: the settings, of which ``enable_progress_bar`` is set to False where nobody has chosen.
    """
    terminal, own = sys.stdout.isatty(), trainer.get("callbacks")
    has_bar = any(isinstance(each, ProgressBar) for each in (own if isinstance(own, list) else [own]))
    if trainer.get("enable_progress_bar") is None and not has_bar:
        trainer["enable_progress_bar"] = terminal
    if not terminal:
        return [TrainedWeights(), ProgressLines()]
    return [TrainedWeights(), EpochBar()] if trainer["enable_progress_bar"] and not has_bar else [TrainedWeights()]


def _epoch(trainer: Trainer, current: int) -> str:
    """The number of an epoch, and how many there are if that is known."""
    last = trainer.max_epochs
    return f"{current + 1}" if last is None or last < 0 else f"{current + 1}/{last}"
