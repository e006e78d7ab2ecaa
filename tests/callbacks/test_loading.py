"""Loading as Lightning loads: its arguments, its strictness, and hooks that edit what will be loaded."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from releases import needs_compiler
from torch import Tensor, nn

from gpart.callbacks import GPartCallback, load_from_checkpoint
from gpart.errors import GPartError


class Net(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm, self.head = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.one(x)))


class Lit(LightningModule):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(classes)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    test_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def gpart() -> GPartCallback:
    return GPartCallback(d=5, target_modules=["one"], modules_to_save=["head"], module="net")


@pytest.fixture
def write(lit_trainer: Any, lit_loader: Any, tmp_path: Path) -> Any:
    def write(module: LightningModule) -> Path:
        trainer = lit_trainer(gpart())
        trainer.fit(module, lit_loader())
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        return tmp_path / "a.ckpt"

    return write


@pytest.fixture
def read(lit_trainer: Any, lit_loader: Any) -> Any:
    """The two ways to read a file into a module of a class."""

    def by_test(cls: Any, path: Path) -> LightningModule:
        lit_trainer(gpart()).test(module := cls(), lit_loader(), ckpt_path=path, verbose=False)
        return module

    return by_test, load_from_checkpoint


def same(module: LightningModule, other: LightningModule) -> bool:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    return torch.equal(module.eval().net(x), other.eval().net(x))


class Loss(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.ones(2))


class Drops(Lit):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert {"net.one.weight", "net.norm.running_mean"} < set(checkpoint["state_dict"])  # the whole
        del checkpoint["state_dict"]["weights"]


class Renames(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("balance", torch.zeros(2))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["balance"] = checkpoint["state_dict"].pop("weights")


@pytest.mark.parametrize("cls", [Drops, Renames])
def test_a_hook_edits_what_is_loaded(cls: Any, write: Any, read: Any) -> None:
    path = write(module := Loss())
    for reader in read:
        found = reader(cls, path)
        assert same(found, module)
        assert cls is Drops or torch.equal(found.balance, torch.ones(2))


class Grows(Lit):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.net.head = nn.Linear(6, len(checkpoint["state_dict"]["net.head.bias"]))


def test_a_hook_makes_a_head_of_the_files_size(write: Any, read: Any, lit_trainer: Any, lit_loader: Any) -> None:
    path = write(module := Lit(5))
    for reader in (read[0], lambda cls, path: load_from_checkpoint(cls, path, classes=2)):
        found = reader(Grows, path)
        assert found.net.head.out_features == 5
        assert same(found, module)
    lit_trainer(gpart(), max_epochs=2).fit(resumed := Grows(), lit_loader(), ckpt_path=path)
    assert not torch.equal(resumed.net.head.weight, module.net.head.weight)


class Trained(Lit):
    """Saves by its own method, without ``**kwargs``."""

    strict_loading = False

    def state_dict(self) -> dict[str, Any]:
        return {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}


class Renamed(Lit):
    """Writes and reads other names."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {f"model/{key}": value for key, value in super().state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state_dict: Any, strict: bool = True) -> Any:
        return super().load_state_dict({key.removeprefix("model/"): state_dict[key] for key in state_dict}, strict)


@pytest.mark.parametrize("cls", [Trained, Renamed])
def test_a_module_with_a_state_dict_of_its_own(cls: Any, write: Any, read: Any) -> None:
    path = write(module := cls())
    assert not [key for key in torch.load(path)["state_dict"] if key.endswith("one.weight")]
    module.net.norm.reset_running_stats()
    for reader in read:
        found = reader(cls, path)
        found.net.norm.reset_running_stats()
        assert same(found, module)


class Compiled(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")


@needs_compiler
def test_a_compiled_networks_file_has_plain_names(write: Any, read: Any) -> None:
    path = write(module := Compiled())
    assert not [key for key in torch.load(path)["state_dict"] if "_orig_mod" in key]
    for cls in (Compiled, Lit):
        for reader in read:
            assert same(reader(cls, path), module)


def test_strict_is_lightnings(write: Any) -> None:
    class Lacks(Lit):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            del checkpoint["state_dict"]["net.head.bias"]

    path = write(module := Lacks())
    with pytest.raises(GPartError, match=r"keys missing \['head\.bias'\]"):
        load_from_checkpoint(Lit, path)
    found = load_from_checkpoint(Lit, path, strict=False)
    assert torch.equal(found.net.head.weight, module.net.head.weight)
    assert torch.equal(found.net.gpart.default.theta, module.net.gpart.default.theta)


def test_lightnings_arguments(write: Any, tmp_path: Path) -> None:
    path = write(module := Lit(3))
    (tmp_path / "hparams.yaml").write_text("classes: 3\n")
    for given in ({}, {"hparams_file": tmp_path / "hparams.yaml"}, {"weights_only": True, "strict": True}):
        found = load_from_checkpoint(Lit, checkpoint_path=path, map_location="cpu", **given)
        assert type(found) is Lit
        assert same(found, module)
    assert "on_load_checkpoint" not in vars(Lit)


def test_a_plain_checkpoint_says_what_to_do(lit_trainer: Any, lit_loader: Any, tmp_path: Path) -> None:
    trainer = lit_trainer()
    trainer.fit(Lit(), lit_loader())
    trainer.save_checkpoint(path := tmp_path / "plain.ckpt")
    with pytest.raises(GPartError, match=r"without GPartCheckpointIO.*Lit\.load_from_checkpoint\(path\), then fit"):
        lit_trainer(gpart()).fit(Lit(), lit_loader(), ckpt_path=path)
    lit_trainer(gpart()).fit(Lit.load_from_checkpoint(path), lit_loader())


def test_a_checkpoint_of_a_trainer_without_the_callback_says_what_it_lacks(
    lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    lit_trainer(gpart()).fit(module := Lit(), lit_loader())
    trainer = lit_trainer()
    trainer.fit(module, lit_loader())
    trainer.save_checkpoint(path := tmp_path / "a.ckpt")
    trainer.test(module, lit_loader(), ckpt_path=path, verbose=False)  # its own reader
    with pytest.raises(GPartError, match=r"has net\.gpart\.default\.theta, but was written by a Trainer without"):
        lit_trainer(gpart()).test(Lit(), lit_loader(), ckpt_path=path, verbose=False)


@pytest.mark.parametrize("given", ["network", "backbone"])
def test_a_network_that_is_an_argument_is_asked_for(
    given: str, lit_trainer: Any, lit_loader: Any, tmp_path: Path
) -> None:
    class Takes(LightningModule):
        def __init__(self, network: nn.Module | None = None, backbone: nn.Module | None = None) -> None:
            super().__init__()
            self.net = backbone if network is None else network

        training_step, configure_optimizers = Lit.training_step, Lit.configure_optimizers

    trainer = lit_trainer(gpart())
    trainer.fit(module := Takes(**{given: Net()}), lit_loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(GPartError, match=r"Takes has \[\]: give the network as an argument where __init__ takes it"):
        load_from_checkpoint(Takes, tmp_path / "a.ckpt")
    loaded = load_from_checkpoint(Takes, tmp_path / "a.ckpt", **{given: Net()})
    x = torch.randn(4, 8)
    assert torch.equal(loaded.eval().net(x), module.eval().net(x))


class Renamed(Lit):
    """Its files have other names, and nothing names them back; ``strict_loading=False`` hides it."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {f"model_{key}": value for key, value in super().state_dict(*args, **kwargs).items()}


class NamedBack(Renamed):
    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(
            {key.removeprefix("model_"): value for key, value in state.items()}, *args, **kwargs
        )


class Dropping(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if "head" in key}


@pytest.mark.parametrize(("cls", "loads"), [(Renamed, False), (Dropping, False), (NamedBack, True), (Lit, True)])
def test_a_theta_that_the_module_drops_is_said(
    cls: Any, loads: bool, write: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    path = write(module := cls())

    def by_hand() -> Any:
        return load_from_checkpoint(cls, path)

    def by_trainer() -> Any:
        fresh = cls()
        lit_trainer(gpart()).test(fresh, lit_loader(), ckpt_path=path, verbose=False)
        return fresh

    def by_fit() -> Any:
        fresh = cls()
        lit_trainer(gpart(), max_steps=4).fit(fresh, lit_loader(), ckpt_path=path)
        return fresh

    for read in (by_hand, by_trainer, by_fit):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = read()
        theta = found.net.gpart["default"].theta
        assert read is by_fit or torch.equal(theta, module.net.gpart["default"].theta) == loads
        assert sum(f"the theta of {path} was not loaded" in str(one.message) for one in said) == (not loads), read
