"""pytorch-forecasting: TFT, N-BEATS and DeepAR as its tutorials train them, and with the line."""

from __future__ import annotations

import tempfile
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from facts import FirstLoss, Watched, difference, report
from pytorch_forecasting import DeepAR, NBeats, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.data import NaNLabelEncoder
from pytorch_forecasting.metrics import NormalDistributionLoss, QuantileLoss

STEPS, SERIES = 60, 4
time = np.tile(np.arange(STEPS), SERIES)
group = np.repeat(np.arange(SERIES), STEPS)
noise = np.random.default_rng(0).normal(0, 0.1, SERIES * STEPS)
FRAME = pd.DataFrame({"time": time, "series": group.astype(str), "value": np.sin(time / 5 + group) + group + noise})
MODELS: dict[str, Any] = {
    "TFT": (
        TemporalFusionTransformer,
        {"hidden_size": 8, "loss": QuantileLoss()},
        {"time_varying_known_reals": ["time"]},
    ),
    "N-BEATS": (NBeats, {"widths": [16, 32]}, {}),
    "DeepAR": (DeepAR, {"hidden_size": 8, "loss": NormalDistributionLoss()}, {}),
}
# An LSTM's weights are no layer's ``weight``, so they are named as parameters.
LINES: dict[str, dict[str, Any]] = {
    "TFT": {"target_modules": "all-linear", "modules_to_save": ["output_layer"]},
    "N-BEATS": {"target_modules": "all-linear"},
    "DeepAR": {"target_parameters": ["weight_ih_l0", "weight_hh_l0"], "modules_to_save": ["distribution_projector"]},
}


def project(name: str, folder: str, *callbacks: Any, epochs: int = 2, ckpt_path: str | None = None) -> tuple[Any, ...]:
    """The tutorial; returns the trained model, the trainer and the validation loader."""
    cls, settings, columns = MODELS[name]
    pl.seed_everything(0, verbose=False)
    training = TimeSeriesDataSet(
        FRAME[FRAME.time < STEPS - 6],
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=12,
        min_encoder_length=12,
        max_prediction_length=6,
        min_prediction_length=6,
        time_varying_unknown_reals=["value"],
        categorical_encoders={"series": NaNLabelEncoder().fit(FRAME.series)},
        **columns,
    )
    validation = TimeSeriesDataSet.from_dataset(training, FRAME, min_prediction_idx=STEPS - 6)
    model = cls.from_dataset(training, learning_rate=0.03, **settings)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        gradient_clip_val=0.1,
        limit_train_batches=4,
        callbacks=[*callbacks],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    loader = validation.to_dataloader(train=False, batch_size=16, num_workers=0)
    trainer.fit(
        model,
        training.to_dataloader(train=True, batch_size=16, num_workers=0),
        loader,
        ckpt_path=ckpt_path,
        weights_only=False,
    )
    return model, trainer, loader


def predicted(model: Any, loader: Any) -> Any:
    """As the tutorials predict; DeepAR samples, with the same seed."""
    pl.seed_everything(1, verbose=False)
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    return model.predict(loader, trainer_kwargs=settings)


def facts(name: str) -> dict[str, Any]:
    """Plain, with the line, resumed, and loaded by the package."""
    with tempfile.TemporaryDirectory() as folder:
        plain = FirstLoss()
        project(name, folder + "/plain", plain, epochs=1)
        # The line: callbacks=[GPartCallback(...)]; checkpoints="merged" is for the package's own load_from_checkpoint.
        line = Watched(d=20, checkpoints="merged", **LINES[name])
        model, trainer, loader = project(name, folder + "/line", line)
        expected = predicted(model, loader)
        first = Watched(d=20, checkpoints="merged", **LINES[name])
        half = project(name, folder + "/half", first, epochs=1)[1].checkpoint_callback.best_model_path
        again = Watched(d=20, checkpoints="merged", **LINES[name])
        resumed = project(name, folder + "/resumed", again, ckpt_path=half)[0]
        loaded = MODELS[name][0].load_from_checkpoint(trainer.checkpoint_callback.best_model_path, weights_only=False)
        return {
            "model": name,
            "line": f"callbacks=[GPartCallback(d=20, checkpoints='merged', {LINES[name]})]",
            **line.found(plain),
            "resumed, difference": difference(predicted(resumed, loader), expected),
            "own load, difference": difference(predicted(loaded, loader), expected),
        }


if __name__ == "__main__":
    report("pytorch-forecasting", rows=[facts(name) for name in MODELS])
