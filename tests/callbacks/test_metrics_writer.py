"""What MetricsWriter writes is what the run came to."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from gpart.callbacks import LinearProbe, MetricsWriter


class Slow(Callback):
    """Lets each training step take 0.05 seconds, and the start of fit 0.3."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        time.sleep(0.3)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        time.sleep(0.05)


def record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_fit_then_test(lit_class: Any, lit_trainer: Any, lit_loader: Any, lit_gpart: Any, tmp_path: Path) -> None:
    path, module = tmp_path / "new" / "metrics.json", lit_class()
    keeper = ModelCheckpoint(tmp_path, monitor="val/loss", mode="min")
    callbacks = [MetricsWriter(str(path)), Slow(), lit_gpart(), keeper]
    trainer = lit_trainer(*callbacks, max_epochs=2, enable_checkpointing=True)
    trainer.fit(module, lit_loader(), lit_loader())
    found = record(path)
    assert found["state"] == "fitted"
    assert "test" not in found
    fit = found["fit"]
    assert (fit["epochs"], fit["steps"]) == (2, 8)
    assert (fit["best_monitor"], fit["best_mode"]) == ("val/loss", "min")
    assert fit["best_score"] == pytest.approx(keeper.best_model_score.item())
    assert fit["last"] == {"val/loss": pytest.approx(trainer.callback_metrics["val/loss"].item())}
    assert found["parameters"] == {"trainable": 10 + 34, "head": 34}
    # theta and the head in float32, BatchNorm's two running values and its count in int64
    assert found["kept_bytes"] == 4 * (10 + 34) + 4 * 2 * 16 + 8
    assert found["peak_memory_bytes"] > 50e6
    assert found["device"] == "cpu"
    assert found["versions"]["torch"] == torch.__version__

    trainer.test(module, lit_loader(), ckpt_path="best", verbose=False)
    tested = record(path)
    assert tested["state"] == "tested"
    assert tested["test"] == {"test/loss": pytest.approx(trainer.callback_metrics["test/loss"].item())}
    assert tested["fit"] == fit


def test_the_keeper_of_the_best_is_told_and_not_one_that_stands_before_it(
    lit_class: Any, lit_trainer: Any, lit_loader: Any, lit_gpart: Any, tmp_path: Path
) -> None:
    every = ModelCheckpoint(tmp_path / "every", every_n_train_steps=2, save_top_k=-1)
    keeper = ModelCheckpoint(tmp_path / "best", monitor="val/loss")
    writer, method = MetricsWriter(str(tmp_path / "m.json")), lit_gpart(save_folder=str(tmp_path / "adapter"))
    lit_trainer(every, keeper, writer, method, max_epochs=2, enable_checkpointing=True).fit(
        lit_class(), lit_loader(), lit_loader()
    )
    fit = record(tmp_path / "m.json")["fit"]
    assert (fit["best_monitor"], fit["best_mode"]) == ("val/loss", "min")
    assert fit["best_score"] == pytest.approx(keeper.best_model_score.item())


def test_all_that_validation_and_test_log_is_kept_by_any_name(
    lit_class: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    """As plain Lightning's examples name their metrics; what training logs is none of the validation's."""

    class Plain(lit_class):  # type: ignore[misc]  # a fixture
        def training_step(self, batch: Any, index: int) -> Any:
            loss = super().training_step(batch, index)
            self.log("train_loss", loss)
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", 1.0 + self.current_epoch)

        def on_validation_epoch_end(self) -> None:
            self.log("f1", 0.5)

        def test_step(self, batch: Any, index: int) -> None:
            self.log("test_acc", 0.25)

    path = tmp_path / "metrics.json"
    trainer = lit_trainer(MetricsWriter(str(path)), max_epochs=2)
    module = Plain()
    trainer.fit(module, lit_loader(), lit_loader())
    assert record(path)["fit"]["last"] == {"val_loss": 2.0, "f1": 0.5}
    trainer.test(module, lit_loader(), verbose=False)
    assert record(path)["test"] == {"test_acc": 0.25}
    assert record(path)["fit"]["last"] == {"val_loss": 2.0, "f1": 0.5}


def test_the_seconds_are_those_of_training(lit_class: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path) -> None:
    """Not of what comes before it: 0.3 seconds are slept before the clock starts, 4 x 0.05 after."""
    path = tmp_path / "metrics.json"
    start = time.perf_counter()
    lit_trainer(MetricsWriter(str(path)), Slow(), max_epochs=1).fit(lit_class(), lit_loader())
    whole = time.perf_counter() - start
    assert 0.2 <= record(path)["fit"]["seconds"] <= whole - 0.29


def test_without_a_method_and_without_a_checkpoint(
    lit_class: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.json"
    module = lit_class()
    lit_trainer(MetricsWriter(str(path))).fit(module, lit_loader())
    found = record(path)
    assert found["parameters"] == {"trainable": sum(value.numel() for value in module.parameters()), "head": 0}
    assert (found["fit"]["best_score"], found["fit"]["best_monitor"], found["fit"]["steps"]) == (None, None, 3)


def test_test_alone_has_no_fit(lit_class: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    lit_trainer(LinearProbe(["3"]), MetricsWriter(str(path))).test(lit_class(), lit_loader(), verbose=False)
    found = record(path)
    assert found["state"] == "tested"
    assert "fit" not in found
    assert set(found["test"]) == {"test/loss"}


def test_a_second_fit_begins_a_new_record(lit_class: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    trainer = lit_trainer(MetricsWriter(str(path)), max_epochs=1)
    module = lit_class()
    trainer.fit(module, lit_loader())
    trainer.test(module, lit_loader(), verbose=False)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, lit_loader())
    assert record(path)["state"] == "fitted"
    assert "test" not in record(path)
