"""Whether there is something to test on, asked before training and not after it.

A run with ``--test_best`` that can't be tested would train to its end and then stop with an error.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer

from gpart.callbacks.packages import is_overridden
from gpart.errors import GPartError


@runtime_checkable
class ChecksTest(Protocol):
    """A DataModule that knows after ``setup("fit")`` whether it has a test part."""

    def check_test(self) -> None:
        """Raises a GPartError if it has none."""


class ScoredPart(Callback):
    """Stops ``fit --test_best`` before its first step where nothing could be tested."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Runs after the DataModule's own setup, which has read the rows.

        Raises:
            GPartError: if the LightningModule has no ``test_step``, or there is no test part.
        """
        if stage != "fit":
            return
        data = getattr(trainer, "datamodule", None)
        if not is_overridden("test_step", pl_module):
            raise GPartError(f"--test_best true needs a test_step, and {type(pl_module).__name__} has none")
        if not any(is_overridden("test_dataloader", one) for one in (data, pl_module) if one is not None):
            without = type(pl_module if data is None else data).__name__
            raise GPartError(f"--test_best true needs a test_dataloader, and {without} has none")
        if isinstance(data, ChecksTest):
            data.check_test()
