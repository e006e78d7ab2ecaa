"""darts: TCN, N-HiTS and an LSTM of its torch models, with ``pl_trainer_kwargs`` and their own ``save`` and ``load``."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
from darts import TimeSeries
from darts.models import BlockRNNModel, NHiTSModel, TCNModel
from facts import FirstLoss, Watched, difference, report

STEPS = np.arange(120, dtype=np.float32)
SERIES = TimeSeries.from_values(np.sin(STEPS / 6) + np.random.default_rng(0).normal(0, 0.1, 120).astype(np.float32))
MODELS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "TCNModel": (TCNModel, {"num_filters": 8}, {"target_modules": ["conv1", "conv2"]}),
    "NHiTSModel": (NHiTSModel, {"layer_widths": 16}, {"target_modules": "all-linear"}),
    "BlockRNNModel": (
        BlockRNNModel,
        {"model": "LSTM", "hidden_dim": 8},
        {"target_parameters": ["weight_ih_l0", "weight_hh_l0"], "modules_to_save": ["fc"]},
    ),
}


def made(name: str, folder: str, *callbacks: Any, epochs: int = 2) -> Any:
    """As darts' guide on callbacks makes a model."""
    cls, settings, _ = MODELS[name]
    return cls(
        input_chunk_length=24,
        output_chunk_length=6,
        n_epochs=epochs,
        batch_size=16,
        random_state=0,
        work_dir=folder,
        save_checkpoints=True,
        model_name=name,
        pl_trainer_kwargs={"accelerator": "cpu", "enable_progress_bar": False, "callbacks": [*callbacks]},
        **settings,
    )


def facts(name: str) -> dict[str, Any]:
    """Plain, with the line, saved and loaded by darts in both its ways, and trained further after that."""
    with tempfile.TemporaryDirectory() as folder:
        plain = FirstLoss()
        made(name, folder + "/plain", plain, epochs=1).fit(SERIES)
        # The line: pl_trainer_kwargs={"callbacks": [GPartCallback(...)]}
        line = Watched(d=20, checkpoints="merged", **MODELS[name][2])
        model = made(name, folder + "/line", line).fit(SERIES)
        expected = model.predict(6).values()
        cls = MODELS[name][0]
        model.save(folder + "/saved.pt")
        loaded = cls.load(folder + "/saved.pt", pl_trainer_kwargs={"accelerator": "cpu"})
        model.save(folder + "/clean.pt", clean=True)
        clean = cls.load(folder + "/clean.pt", pl_trainer_kwargs={"accelerator": "cpu"})
        checkpoint = cls.load_from_checkpoint(name, work_dir=folder + "/line", best=False)
        again = Watched(d=20, checkpoints="merged", **MODELS[name][2])
        tuned = made(name, folder + "/again", again, epochs=1)
        tuned.load_weights(folder + "/saved.pt")
        tuned.fit(SERIES)
        return {
            "model": name,
            "line": f"pl_trainer_kwargs={{'callbacks': [GPartCallback(d=20, checkpoints='merged', {MODELS[name][2]})]}}",
            **line.found(plain),
            "own load, difference": difference(loaded.predict(6).values(), expected),
            "own load of save(clean=True), difference": difference(clean.predict(6, SERIES).values(), expected),
            "own load_from_checkpoint, difference": difference(checkpoint.predict(6).values(), expected),
            "trained again after load_weights": again.facts["length of theta"] > 0
            and again.facts["frozen weights kept"],
        }


if __name__ == "__main__":
    report("u8darts", "pytorch-lightning", rows=[facts(name) for name in MODELS])
