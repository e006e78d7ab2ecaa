"""The run's ``config.yaml``, which also says what was left out and the data or the model told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback


class SavedConfig(SaveConfigCallback):
    """Lightning's, written when data and model are set up: a setting that was null stands there as it was resolved."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes nothing yet: the model's own setup comes after the callbacks'."""

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by its data connector
        for key, one in (("model", pl_module), ("data", data)):
            if self.config.get(key) is not None and one is not None:
                settle(self.config[key].get("init_args") or {}, one.hparams)
        super().setup(trainer, pl_module, str(trainer.state.fn))

    on_fit_start = on_validation_start = on_test_start = on_predict_start = _save


def settle(settings: Any, hparams: Mapping[str, Any]) -> None:
    """Fills settings that are null with the hyperparameters of the same name, where these are not.

    Example:
        >>> settings = {"num_labels": None, "lr": 0.1, "schedule": None}
        >>> settle(settings, {"num_labels": 3, "lr": 0.2, "model": "x"})
        >>> settings
        {'num_labels': 3, 'lr': 0.1, 'schedule': None}
    """
    for name in list(settings.keys()):
        if settings[name] is None and hparams.get(name) is not None:
            settings[name] = hparams[name]
