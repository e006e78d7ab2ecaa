"""neuralforecast: N-HITS and NBEATS by their Trainer arguments, with NeuralForecast's own ``save`` and ``load``."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pandas as pd
from facts import FirstLoss, Watched, difference, report
from neuralforecast import NeuralForecast
from neuralforecast.models import NBEATS, NHITS

STEPS = 120
FRAME = pd.DataFrame(
    {
        "unique_id": np.repeat(["a", "b"], STEPS),
        "ds": np.tile(pd.date_range("2020-01-01", periods=STEPS, freq="D"), 2),
        "y": np.sin(np.tile(np.arange(STEPS), 2) / 6) + np.random.default_rng(0).normal(0, 0.1, 2 * STEPS),
    }
)
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "NHITS": (NHITS, {"mlp_units": 3 * [[16, 16]]}),
    "NBEATS": (NBEATS, {"mlp_units": 3 * [[16, 16]]}),
}


def project(name: str, *callbacks: Any) -> NeuralForecast:
    """As the quick start: what the model does not know goes to the Trainer."""
    cls, settings = MODELS[name]
    more: dict[str, Any] = {"callbacks": [*callbacks]} if callbacks else {}
    model = cls(
        h=6,
        input_size=24,
        max_steps=8,
        random_seed=0,
        accelerator="cpu",
        enable_progress_bar=False,
        logger=False,
        **settings,
        **more,
    )
    forecast = NeuralForecast(models=[model], freq="D")
    forecast.fit(df=FRAME)
    return forecast


def facts(name: str) -> dict[str, Any]:
    """Plain, with the line, saved and loaded by NeuralForecast."""
    with tempfile.TemporaryDirectory() as folder:
        plain = project(name, FirstLoss()).models[0].trainer_kwargs["callbacks"][0]  # a copy: each model gets its own
        # The line: NHITS(..., callbacks=[GPartCallback(..., merge_at_end=True)])
        forecast = project(name, Watched(d=20, target_modules="all-linear", merge_at_end=True))
        line = forecast.models[0].trainer_kwargs["callbacks"][0]
        expected = forecast.predict()[name].to_numpy()
        forecast.save(folder + "/saved", overwrite=True)
        loaded = NeuralForecast.load(folder + "/saved")
        return {
            "model": name,
            "line": "callbacks=[GPartCallback(d=20, target_modules='all-linear', merge_at_end=True)]",
            **line.found(plain),
            "own load, difference": difference(loaded.predict()[name].to_numpy(), expected),
        }


if __name__ == "__main__":
    report("neuralforecast", rows=[facts(name) for name in MODELS])
