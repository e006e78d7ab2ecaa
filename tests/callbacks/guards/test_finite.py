"""Theta that becomes NaN or infinite stops the run, with the step, and the last good checkpoint stays the newest."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from torch import Tensor

from gpart import load_adapter
from gpart.callbacks.guards.finite import FiniteTheta


class Spoil(Callback):
    """Gives theta's gradient a bad number before one optimizer step."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.step:
            module.net.gpart.default.theta.grad[3] = self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("more", [{}, {"accumulate_grad_batches": 2}, {"max_epochs": 4}])
def test_it_stops_with_the_step_and_keeps_the_last_good_checkpoint(
    value: float,
    more: dict[str, int],
    lit_class: Any,
    lit_gpart: Any,
    lit_trainer: Any,
    lit_loader: Any,
    tmp_path: Path,
) -> None:
    keeper = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=1, save_last=True, save_top_k=1,
                             monitor="step", mode="max", save_on_exception=True)  # fmt: skip
    step = 5 if "max_epochs" in more else 1
    trainer = lit_trainer(Spoil(step, value), keeper, OnExceptionCheckpoint(tmp_path / "error"), lit_gpart(), enable_checkpointing=True,
                          **{"max_epochs": 2, **more})  # fmt: skip
    module = lit_class()
    with pytest.raises(ValueError, match=r"NaN or infinite") as raised:
        trainer.fit(module, lit_loader())
    first = raised.value
    while "theta is not finite" not in str(first):  # what saves on exceptions is refused too, while this one is handled
        first = first.__context__
    assert f"after step {step + 1}: 1 of its 10 numbers" in str(first)
    # The rate that the step was made with, not the schedule's next.
    assert f"learning rate {0.5e-2 * (1 + math.cos(math.pi * step / 40)):g}. " in str(first)
    assert "gradient_clip_val" in str(first)
    assert sorted(path.name for path in tmp_path.rglob("*.ckpt")) == ["last.ckpt", f"step={step}.ckpt"]
    for path in tmp_path.rglob("*.ckpt"):
        assert load_adapter(lit_class().net, path).theta.isfinite().all()
    fresh = lit_class()
    further = lit_trainer(
        lit_gpart(), max_epochs=2, **{key: value for key, value in more.items() if key != "max_epochs"}
    )
    further.fit(fresh, lit_loader(), ckpt_path=tmp_path / "kept" / "last.ckpt")
    assert fresh.net.gpart.default.theta.isfinite().all()


def test_a_loss_that_overflows(lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    class Overflows(lit_class):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return super().training_step(batch, index) * 1e38 * 1e3**index

    with pytest.raises(
        ValueError, match=r"theta is not finite after step \d: \d+ of its 10 .* learning rate 0\.00\d+\. .*Try"
    ):
        lit_trainer(lit_gpart(), max_epochs=9).fit(Overflows(), lit_loader())


def test_a_step_that_is_left_out_is_no_error(lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    """As float16's loss scaling does where a gradient has overflowed."""

    class Skips(lit_class):
        def optimizer_step(self, epoch: int, index: int, optimizer: Any, closure: Any = None) -> None:
            closure()
            if torch.stack(
                [value.grad.isfinite().all() for value in self.parameters() if value.grad is not None]
            ).all():
                optimizer.step()
            else:
                self.skipped = index

    module = Skips()
    trainer = lit_trainer(lit_gpart(), max_steps=8, max_epochs=2)
    module.on_after_backward = lambda: (
        module.net.gpart.default.theta.grad.fill_(float("inf")) if trainer.global_step == 2 else None
    )
    trainer.fit(module, lit_loader())
    assert module.skipped == 2
    assert module.net.gpart.default.theta.isfinite().all()


def test_a_checkpoint_of_a_bad_theta_is_not_written(lit_fitted: Any, tmp_path: Path) -> None:
    module, trainer, path = lit_fitted()
    written = path.read_bytes()
    module.net.gpart.default.theta.data[0] = float("nan")
    for only in (True, False):
        with pytest.raises(ValueError, match="1 of theta's 10 numbers are NaN or infinite"):
            trainer.save_checkpoint(path, weights_only=only)
    assert path.read_bytes() == written


class OnDevice(Tensor):
    """A tensor that says it is on an accelerator."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


def of_another_device() -> Tensor:
    return torch.zeros(4).as_subclass(OnDevice)


def of_cuda() -> Tensor:
    return torch.zeros(4, device="cuda")


NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("make", [of_another_device, pytest.param(of_cuda, marks=NEEDS_GPU)])
def test_on_an_accelerator_it_is_read_a_step_later(make: Callable[[], Tensor]) -> None:
    finite, theta = FiniteTheta(), make()
    finite.look(theta, 1, 0.1)
    theta[2] = float("nan")
    finite.look(theta, 2, 0.2)
    with pytest.raises(ValueError, match=r"after step 2: 1 of its 4 numbers .* learning rate 0\.2"):
        finite.settle(theta)  # as at the end of training
    with pytest.raises(ValueError, match=r"after step 2: 1 of its 4 numbers .* learning rate 0\.2"):
        finite.look(theta, 3, 0.3)
