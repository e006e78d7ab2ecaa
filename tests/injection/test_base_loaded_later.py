"""A base's own weights that are loaded after attach, as a project's setup does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gpart import GPartConfig, attach, load_adapter, set_active
from gpart.callbacks import GPartCallback

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()


def config(seed: int = 0) -> GPartConfig:
    return GPartConfig(d=5, target_modules=["0"], modules_to_save=["2"], seed=seed)


def test_it_is_the_base_then(tmp_path: Path) -> None:
    model = net(1)
    adapter = attach(model, config())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not any(model.load_state_dict(net(2).state_dict()))
    assert torch.equal(model(X), net(2)(X))
    with torch.no_grad():
        adapter.theta.fill_(0.5)
    adapter.save(tmp_path)
    load_adapter(other := net(2), tmp_path)
    assert torch.equal(other(X), model(X))
    with pytest.raises(ValueError, match="another base model"):
        load_adapter(net(1), tmp_path)


def test_a_theta_that_is_not_zero_stays_and_that_is_told() -> None:
    model = net(1)
    adapter = attach(model, config())
    with torch.no_grad():
        adapter.theta.fill_(0.5)
    with pytest.warns(UserWarning, match=r"has no 0\.gpart\.default\.theta: the weights in it .* is not 0, stays"):
        model.load_state_dict(net(2).state_dict())
    assert torch.equal(adapter.theta, torch.full((5,), 0.5))
    (other := attach(expected := net(2), config())).theta.data.fill_(0.5)
    assert torch.equal(model(X), expected(X))
    assert torch.equal(other.theta, adapter.theta)


def test_a_state_with_a_part_of_the_thetas_is_not_a_bases() -> None:
    model = net(1)
    attach(model, config(), name="one")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    attach(model, config(1), name="two")
    set_active(model, "two")
    with pytest.raises(RuntimeError, match=r"Missing key.*two"):
        model.load_state_dict(state)
    model.load_state_dict(net(2).state_dict())  # and what lies beside the model is no part of a base's
    set_active(model, [])
    assert torch.equal(model[0](X), net(2)[0](X))
    assert not any(model.load_state_dict(model.state_dict()))


def test_what_is_missing_else_is_still_missing() -> None:
    model = net(1)
    attach(model, config())
    state = net(2).state_dict()
    del state["0.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*0[.]bias"):
        model.load_state_dict(state)
    outer = nn.ModuleDict({"a": model, "b": nn.Linear(2, 2)})
    outer.load_state_dict({key: value for key, value in outer.state_dict().items() if "gpart" not in key})
    with pytest.raises(RuntimeError, match=r"Missing key.*\"b\.weight\""):
        outer.load_state_dict({key: value for key, value in outer.state_dict().items() if key[0] == "a"})


class Loads(LightningModule):
    """A project that builds in ``__init__`` and reads the pretrained weights later."""

    def __init__(self) -> None:
        super().__init__()
        self.model = net(1).train()

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def test_step(self, batch: list[torch.Tensor]) -> None:
        self.log("loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("where", ["setup", "configure_model", "on_fit_start"])
def test_a_projects_hook_reads_the_pretrained_weights(where: str, tmp_path: Path) -> None:
    def load(self: Loads, **_: Any) -> None:
        self.model.load_state_dict(net(2).state_dict())

    hook: dict[str, Callable[..., None]] = {where: load}
    module = type("Project", (Loads,), hook)()
    callback = GPartCallback(d=5, target_modules=["0"], modules_to_save=["2"], save_folder=str(tmp_path / "adapter"))
    data = DataLoader(TensorDataset(X, torch.arange(4) % 2), batch_size=2)
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, callbacks=[callback], default_root_dir=tmp_path)
    trainer.fit(module, data)
    load_adapter(other := net(2), tmp_path / "adapter")
    trained = module.model.eval()(X)
    assert torch.equal(other(X), trained)
    trainer.test(module, data, ckpt_path="best", verbose=False)
    assert torch.equal(module.model(X), trained)
