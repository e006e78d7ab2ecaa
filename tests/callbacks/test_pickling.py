"""A used callback, its module and its trainer go through pickle, as Ray, joblib and a project's own ``torch.save`` do."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from gpart import get_adapters
from gpart.callbacks import GPartCallback, PeftCallback

WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "torch.save": lambda value: saved(value),
}


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class Project(LightningModule):
    def __init__(self, where: str = "init") -> None:
        super().__init__()
        self.where, self.net = where, None
        if where == "init":
            self.build()

    def build(self) -> None:
        if self.net is None:
            self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))

    def setup(self, stage: str) -> None:
        if self.where == "setup":
            self.build()

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 0.05)


def states_equal(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("weights", ["kept", "forward", "recomputed"])
def test_a_copy_goes_on_as_the_original(
    way: str, weights: str, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    """Callback and module together: the copy's callback knows the copy's network, and neither touches the other."""
    module, method = Project(), lit_gpart(weights=weights)
    lit_trainer(method).fit(module, lit_loader())
    copied, its = WAYS[way]((module, method))
    assert its.adapter is get_adapters(copied.net)["default"]
    assert its.adapter.model is copied.net
    assert states_equal(copied, module)
    before = copy.deepcopy(module.state_dict())
    lit_trainer(its).fit(copied, lit_loader())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    lit_trainer(method).fit(module, lit_loader())
    assert states_equal(copied, module)
    assert not torch.equal(module.net[0].weight, its.adapter.base_parameters()["0.weight"])


@pytest.mark.parametrize("where", ["init", "setup"])
def test_in_the_middle_of_training(where: str, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    """As a callback does that saves the whole module; a copy taken in an evaluation keeps nothing of it open."""

    class Saves(Callback):
        def __init__(self) -> None:
            self.copies: list[tuple[Any, Any]] = []

        def on_train_batch_end(self, trainer: Any, module: Any, *given: Any) -> None:
            self.copies.append(WAYS["pickle"]((module, method)))

        def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
            self.copies.append(WAYS["torch.save"]((module, method)))

    module, method, saves = Project(where), lit_gpart(), Saves()
    lit_trainer(saves, method).fit(module, lit_loader(), lit_loader())
    assert len(saves.copies) > 3
    copied, its = saves.copies[-1]
    with torch.no_grad():
        its.adapter.theta.fill_(1.0)
        changed = copied.net[0].weight
    assert torch.allclose(changed - its.adapter.base_parameters()["0.weight"], its.adapter.delta("0.weight"), atol=1e-6)
    assert "configure_model" not in vars(copied)


def test_a_trainer_that_has_written_checkpoints(
    lit_gpart: Any, lit_trainer: Any, lit_loader: Any, tmp_path: Any
) -> None:
    trainer = lit_trainer(lit_gpart(), enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(Project(), lit_loader())
    copied = WAYS["pickle"](trainer)
    copied.fit_loop.epoch_loop.max_steps = 5
    copied.fit(Project(), lit_loader())
    assert copied.global_step == 5


def test_one_that_was_never_used_serves_another_process() -> None:
    method = WAYS["pickle"](GPartCallback(d=3, target_modules=["0"]))
    network = nn.Sequential(nn.Linear(4, 4))
    method.apply(network)
    assert get_adapters(network)["default"].config.d == 3


def test_a_baseline_s_callback(lit_trainer: Any, lit_loader: Any) -> None:
    method = PeftCallback("LORA", target_modules=["0"], settings={"r": 2})
    module = Project()
    lit_trainer(method).fit(module, lit_loader())
    copied, _ = WAYS["pickle"]((module, method))
    assert states_equal(copied, module)
