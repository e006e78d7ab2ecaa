"""When theta must have a gradient: at the first step after a backward, not before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor

from gpart.errors import GPartError


@pytest.mark.parametrize("skipped", [1, 3])
def test_steps_without_a_loss(skipped: int, lit_any: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    """A batch that the module leaves out by returning None."""

    class Skips(lit_any):
        def training_step(self, batch: Any, index: int) -> Tensor | None:
            return super().training_step(batch, index) if index >= skipped else None

    method = lit_gpart()
    lit_trainer(method, max_epochs=1).fit(Skips(), lit_loader())
    assert method.adapter.theta.count_nonzero() == 10


class Manual:
    """Mixed into a project: manual optimization that skips its first batch."""

    raw = False

    def training_step(self, batch: Any, index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        if index > 0:
            loss = self.loss(batch)
            loss.backward() if self.raw else self.manual_backward(loss)
        optimizer.step()


@pytest.mark.parametrize("raw", [False, True])
def test_manual_steps_without_a_loss(
    raw: bool, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    cls = type("Own", (Manual, lit_class), {"automatic_optimization": False, "raw": raw})
    method = lit_gpart()
    lit_trainer(method, max_epochs=1).fit(cls(), lit_loader())
    assert method.adapter.theta.count_nonzero() == 10


@pytest.mark.parametrize("raw", [None, False, True])
def test_a_loss_that_passes_the_layers_by_is_still_refused(
    raw: bool | None, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    """After a skipped batch, and where the module calls backward itself."""

    class Bypasses(lit_class):
        def training_step(self, batch: Any, index: int) -> Tensor | None:
            return super().training_step(batch, index) if index else None

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.net[:3](x)
            return self.net[3](x)

    manual = type("Own", (Manual, Bypasses), {"automatic_optimization": False, "raw": raw})
    module = Bypasses() if raw is None else manual()
    head = module.net[3].weight.detach().clone()
    with pytest.raises(GPartError, match=r"theta has no gradient after the first backward.*\['0\.weight'\]"):
        lit_trainer(lit_gpart(), max_epochs=1).fit(module, lit_loader())
    assert torch.equal(module.net[3].weight, head)


def test_an_average_s_last_epoch_has_no_backward(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    method = lit_gpart()
    lit_trainer(method, StochasticWeightAveraging(swa_lrs=0.01), max_epochs=2).fit(lit_class(), lit_loader())
    assert method.adapter.theta.count_nonzero() == 10
