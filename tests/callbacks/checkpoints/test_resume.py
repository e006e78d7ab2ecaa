"""A run that was cut short and goes on from its checkpoint ends, bit for bit, as one that was never cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torch import Tensor

from gpart.callbacks import GPartCallback

EPOCHS, PER_EPOCH = 3, 4


class Rates(Callback):
    """The learning rates that the steps were made with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Any, *given: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


class Crash(Callback):
    """Ends the run in the middle of an epoch, when the epochs before are saved."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.current_epoch == self.epoch and index == 1:
            raise RuntimeError("power cut")


def assert_same(one: Any, other: Any) -> None:
    """Equal values, tensors by their bits, through mappings and lists."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


@pytest.fixture
def compare(tmp_path: Path, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> Any:
    """Runs a module whole, and another crashed and resumed; compares what they end as. Returns the resumed one's."""

    def run(cls: Any, crash: int, *extra: Any, method: Any = lit_gpart, **settings: Any) -> Any:
        def trainer(*callbacks: Any) -> Any:
            callbacks = (method(), *[make() for make in extra], *callbacks)
            return lit_trainer(*callbacks, max_epochs=EPOCHS, enable_checkpointing=True, **settings)

        whole, rates = cls(), Rates()
        uncut = trainer(rates, ModelCheckpoint(tmp_path / "whole"))
        uncut.fit(whole, lit_loader())

        keeper, before = ModelCheckpoint(tmp_path / "cut"), Rates()
        with pytest.raises(RuntimeError, match="power cut"):
            trainer(before, keeper, Crash(crash)).fit(cls(), lit_loader())
        resumed, after = cls(), Rates()
        again = trainer(after, ModelCheckpoint(tmp_path / "again"))
        again.fit(resumed, lit_loader(), ckpt_path=keeper.best_model_path)

        assert again.global_step == uncut.global_step
        assert before.seen[: crash * PER_EPOCH] + after.seen == rates.seen
        assert_same(resumed.state_dict(), whole.state_dict())
        assert_same(again.optimizers[0].state_dict(), uncut.optimizers[0].state_dict())
        schedules = [run.lr_scheduler_configs[0].scheduler.state_dict() for run in (again, uncut)]
        assert_same(*schedules)
        return resumed, again

    return run


@pytest.mark.parametrize("crash", [1, 2])
def test_it_ends_as_the_uninterrupted_run(crash: int, lit_any: Any, compare: Any) -> None:
    module, trainer = compare(lit_any, crash)
    assert module.net.gpart.default.theta.count_nonzero() == 10
    assert module.built == 1
    assert len(trainer.optimizers[0].state) == 3


def test_with_accumulated_and_clipped_gradients(lit_class: Any, compare: Any) -> None:
    _, trainer = compare(lit_class, 1, accumulate_grad_batches=2, gradient_clip_val=0.1)
    assert trainer.global_step == EPOCHS * PER_EPOCH // 2


def test_with_half_precision_weights(lit_class: Any, compare: Any) -> None:
    module, _ = compare(lit_class, 1, precision="bf16-true")
    assert module.net[3].weight.dtype == torch.bfloat16


def test_with_an_average(lit_class: Any, compare: Any) -> None:
    """The checkpoint holds the average and the weights that are trained on; both go on."""
    module, trainer = compare(lit_class, 2, lambda: EMAWeightAveraging(decay=0.5))
    average = next(item for item in trainer.callbacks if isinstance(item, EMAWeightAveraging))._average_model
    assert int(average.n_averaged) == EPOCHS * PER_EPOCH
    assert torch.equal(average.module.net.gpart.default.theta, module.net.gpart.default.theta)


def test_the_same_module_and_trainer_go_back_and_on(
    lit_any: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    module, keeper = lit_any(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer = lit_trainer(lit_gpart(), keeper, max_epochs=2, enable_checkpointing=True)
    trainer.fit(module, lit_loader())
    ended = {key: value.clone() for key, value in module.state_dict().items()}
    trainer.fit(module, lit_loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert_same(dict(module.state_dict()), ended)
    assert module.built == 1


def test_a_checkpoint_wins_over_the_folder_to_start_from(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    module = lit_class()
    trainer = lit_trainer(lit_gpart(save_folder=str(tmp_path / "start")))
    trainer.fit(module, lit_loader())
    further = lit_trainer(GPartCallback(adapter=str(tmp_path / "start")), max_steps=5)
    further.fit(module, lit_loader())
    further.save_checkpoint(tmp_path / "further.ckpt")
    seen: list[Tensor] = []

    class Looks(lit_class):
        def on_train_start(self) -> None:
            seen.append(self.net.gpart.default.theta.detach().clone())

    callback = GPartCallback(adapter=str(tmp_path / "start"))
    lit_trainer(callback, max_steps=6).fit(Looks(), lit_loader(), ckpt_path=tmp_path / "further.ckpt")
    assert torch.equal(seen[0], module.net.gpart.default.theta)
    assert callback.adapter.theta.count_nonzero() == 10


def test_a_finished_runs_checkpoint_starts_no_step(lit_fitted: Any, lit_class: Any, lit_trainer: Any, lit_gpart: Any,
                                                   lit_loader: Any) -> None:  # fmt: skip
    module, _, path = lit_fitted()
    fresh = lit_class()
    trainer = lit_trainer(lit_gpart(), max_epochs=1)
    trainer.fit(fresh, lit_loader(), ckpt_path=path)
    assert trainer.global_step == PER_EPOCH
    assert_same(dict(fresh.state_dict()), dict(module.state_dict()))
