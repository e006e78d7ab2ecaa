"""Stops a run whose theta is not finite any more, before it writes a checkpoint.

Invariant: no checkpoint and no adapter folder holds a theta with a NaN or an infinity in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpart.errors import GPartError

ADVICE = (
    "Try a lower learning rate, Trainer(gradient_clip_val=1.0), a warm-up, or precision '32-true' or 'bf16-mixed' in place"
    " of float16; Trainer(detect_anomaly=True) finds the operation, if it is in the model"
)


@dataclass
class FiniteTheta:
    """Looks at theta after each step.

    On a GPU the answer is read a step later, when it is there: waiting for it would let the device run dry. With CUDA it is
    copied to the CPU meanwhile, since reading it from the device waits for all that the next step has begun.
    """

    _flag: Tensor | None = None
    _copied: torch.cuda.Event | None = None
    _step, _rate = 0, 0.0

    def look(self, theta: Tensor, step: int, rate: float) -> None:
        """Looks at theta as it is after ``step`` steps, the last with this learning rate.

        Raises:
            GPartError: if it, or theta of the step before, has a NaN or an infinity, with the step and what to try.
        """
        if theta.device.type != "cpu":
            self.settle(theta)
        self._flag, self._step, self._rate = theta.detach().isfinite().all(), step, rate
        if theta.is_cuda:
            self._flag, self._copied = self._flag.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types here
            self._copied.record(torch.cuda.current_stream(theta.device))
        if theta.device.type == "cpu":
            self.settle(theta)

    def settle(self, theta: Tensor) -> None:
        """Waits for the answer of the last look, and raises as :meth:`look` does; for the end of training."""
        if self._copied is not None:
            self._copied.synchronize()
        if self._flag is None or bool(self._flag):
            self._flag = self._copied = None
            return
        bad = int((~theta.detach().isfinite()).sum())
        raise GPartError(
            f"theta is not finite after step {self._step}: {bad} of its {theta.numel()} numbers are NaN or infinite, with"
            f" learning rate {self._rate:g}. The checkpoints of the steps before are kept. {ADVICE}"
        )


def check_finite(theta: Tensor) -> None:
    """Checks theta before it is written.

    Raises:
        GPartError: if it has a NaN or an infinity.

    Example:
        >>> import torch
        >>> check_finite(torch.tensor([0.0, float("nan")]))
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: no checkpoint is written: 1 of theta's 2 numbers are NaN or infinite. Try a lower learning rate, ...
    """
    if bad := int((~theta.detach().isfinite()).sum()):
        raise GPartError(
            f"no checkpoint is written: {bad} of theta's {theta.numel()} numbers are NaN or infinite. {ADVICE}"
        )
