"""A method's settings among the hyperparameters that a logger shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch import LightningModule, Trainer


def log_settings(trainer: Trainer, pl_module: LightningModule, settings: Mapping[str, Any]) -> None:
    """Logs settings together with the module's and the data module's hyperparameters, which Lightning logs next.

    Together, because TensorBoard shows only what it is given first. A hyperparameter of the same name keeps its value.

    Args:
        trainer: whose loggers are meant.
        pl_module: the module that is trained.
        settings: plain values by name.
    """
    owners = [owner for owner in (pl_module, getattr(trainer, "datamodule", None)) if owner is not None]
    theirs: dict[str, Any] = {}
    for owner in owners:
        if owner._log_hyperparams:
            theirs |= {key: value for key, value in owner.hparams_initial.items() if key != "_class_path"}
    taken = _flatten_dict(_convert_params(theirs))
    free = {key: value for key, value in settings.items() if key not in taken}
    for logger in trainer.loggers:
        logger.log_hyperparams({**theirs, **free})
