"""Projects on ``pytorch_lightning`` live as those on ``lightning.pytorch``: each scenario runs under both packages."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gpart import load_adapter
from gpart.callbacks import (
    AtomicCheckpointIO,
    BitFit,
    GPartCallback,
    GPartCheckpointIO,
    PredictionWriter,
    RandomStates,
    load_from_checkpoint,
)
from gpart.errors import GPartError

SETTINGS: dict[str, Any] = {"d": 10, "target_modules": ["0"], "modules_to_save": ["3"]}
NAMES = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}


def package_of(name: str) -> Any:
    """The package's parts that the scenarios use."""
    root = pytest.importorskip(name)
    parts = ("callbacks", "strategies", "plugins.io", "loggers", "cli")
    return SimpleNamespace(
        name=name,
        Trainer=root.Trainer,
        LightningModule=root.LightningModule,
        Callback=root.Callback,
        **{part.split(".")[0]: importlib.import_module(f"{name}.{part}") for part in parts},
        fabric=importlib.import_module(NAMES[name]),
        **projects(name),
    )


@cache
def projects(name: str) -> dict[str, type]:
    root = importlib.import_module(name)

    class Project(root.LightningModule):
        """Dropout, BatchNorm and AdamW; its network is built where ``where`` says."""

        def __init__(self, where: str = "init", lr: float = 0.05) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net: nn.Module | None = None
            if where == "init":
                self.build()

        def build(self) -> None:
            if self.net is None:
                torch.manual_seed(1)
                self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def predict_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.net(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), self.hparams["lr"])

    class InSetup(Project):
        def __init__(self, lr: float = 0.05) -> None:
            super().__init__("setup", lr)

        def setup(self, stage: str) -> None:
            self.build()

    class InConfigureModel(Project):
        def __init__(self, lr: float = 0.05) -> None:
            super().__init__("configure_model", lr)

        def configure_model(self) -> None:
            self.build()

    return {"Project": Project, "InSetup": InSetup, "InConfigureModel": InConfigureModel}


@pytest.fixture(params=list(NAMES))
def package(request: pytest.FixtureRequest) -> Any:
    return package_of(request.param)


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.randn(12, 4, generator=generator), torch.arange(12) % 2)
    return DataLoader(data, 4, shuffle=True)


def trainer(package: Any, *callbacks: Any, **more: Any) -> Any:
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    return package.Trainer(**{"accelerator": "cpu", "callbacks": list(callbacks), "max_epochs": 3, **quiet, **more})


def fitted(package: Any, *callbacks: Any, module: Any = None, path: Any = None, **more: Any) -> Any:
    module = module or package.Project()
    torch.manual_seed(0)
    trainer(package, *callbacks, **more).fit(module, loader(), ckpt_path=path)
    return module


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


@pytest.mark.parametrize("built", ["Project", "InSetup", "InConfigureModel"])
def test_both_packages_train_the_same_numbers(built: str) -> None:
    """Wherever the network is built; a wrap of configure_model is taken back."""
    modules = []
    for name in NAMES:
        package = package_of(name)
        modules.append(fitted(package, GPartCallback(**SETTINGS), module=getattr(package, built)()))
        assert "configure_model" not in vars(modules[-1])
    assert_same_state(*modules)
    theta = next(value for key, value in modules[0].state_dict().items() if key.endswith("theta"))
    assert theta.count_nonzero() == 10


@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("averaged", [False, True])
def test_a_resumed_run_ends_as_the_uninterrupted_one(package: Any, averaged: bool, step: int, tmp_path: Path) -> None:
    def run(folder: str, **more: Any) -> Any:
        keeper = package.callbacks.ModelCheckpoint(tmp_path / folder, "{step}", save_top_k=-1)
        average = [package.callbacks.EMAWeightAveraging(decay=0.5)] if averaged else []
        return fitted(package, GPartCallback(**SETTINGS), *average, keeper, enable_checkpointing=True, **more)

    whole = run("whole")
    path = tmp_path / "whole" / f"step={step}.ckpt"
    kept = torch.load(path, weights_only=True)
    assert "net.0.weight" not in kept["state_dict"]
    assert any("RandomStates" in key for key in kept["callbacks"])
    torch.manual_seed(99)
    assert_same_state(run("resumed", path=path), whole)


@pytest.mark.parametrize("written_by", list(NAMES))
def test_a_file_goes_on_under_either_package(package: Any, written_by: str, tmp_path: Path) -> None:
    other = package_of(written_by)
    keeper = other.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole = fitted(other, GPartCallback(**SETTINGS), keeper, enable_checkpointing=True)
    first = tmp_path / "epoch=0.ckpt"
    again = package.callbacks.ModelCheckpoint(tmp_path / "again")
    assert_same_state(fitted(package, GPartCallback(**SETTINGS), again, enable_checkpointing=True, path=first), whole)
    loaded = load_from_checkpoint(package.InConfigureModel, tmp_path / "epoch=2.ckpt", lr=0.5)
    assert isinstance(loaded, package.LightningModule)
    assert_same_state(loaded, whole)
    assert loaded.hparams["lr"] == 0.5
    assert load_adapter(package.Project().net, tmp_path / "epoch=2.ckpt").theta.count_nonzero() == 10


def test_plugins_of_either_package_are_wrapped(package: Any, tmp_path: Path) -> None:
    """The innermost writes atomically; one that writes in the background waits at the end."""
    module, method = package.Project(), GPartCallback(**SETTINGS)
    keeper = package.callbacks.ModelCheckpoint(tmp_path, save_top_k=1, enable_version_counter=False)
    run = trainer(package, method, keeper, enable_checkpointing=True, plugins=[package.plugins.AsyncCheckpointIO()])
    run.fit(module, loader())
    plugin = run.strategy.checkpoint_io
    assert isinstance(plugin.checkpoint_io, package.plugins.AsyncCheckpointIO)
    assert isinstance(plugin.checkpoint_io.checkpoint_io._inner, AtomicCheckpointIO)
    assert [path.suffix for path in tmp_path.iterdir()] == [".ckpt"]
    assert_same_state(load_from_checkpoint(package.Project, keeper.best_model_path), module)


@pytest.mark.parametrize("plugin", [GPartCheckpointIO, AtomicCheckpointIO])
def test_a_trainer_takes_our_plugins(package: Any, plugin: type, tmp_path: Path) -> None:
    made = plugin()
    assert isinstance(made, package.fabric.plugins.CheckpointIO)
    keeper = package.callbacks.ModelCheckpoint(tmp_path)
    run = trainer(package, GPartCallback(**SETTINGS), keeper, enable_checkpointing=True, plugins=[made])
    run.fit(package.Project(), loader())
    assert run.strategy.checkpoint_io is made or run.strategy.checkpoint_io.checkpoint_io._inner is made


def test_a_trainer_takes_one_callback_without_a_list(package: Any) -> None:
    method = GPartCallback(**SETTINGS)
    trainer(package, callbacks=method).fit(package.Project(), loader())
    assert method.adapter.theta.count_nonzero() == 10


@pytest.mark.parametrize("cls", [GPartCallback, BitFit, RandomStates, PredictionWriter])
def test_our_callbacks_are_callbacks_of_both(package: Any, cls: type) -> None:
    made = cls(**SETTINGS) if cls is GPartCallback else cls()
    assert isinstance(made, package.Callback)
    assert issubclass(cls, package.Callback)
    assert type(pickle.loads(pickle.dumps(made))) is cls
    assert made.state_key == cls.__qualname__


def test_the_user_may_build_on_our_callback(package: Any) -> None:
    """A subclass of ours and of the package's own Callback, whichever was imported first."""

    class Own(GPartCallback, package.Callback):
        epochs = 0

        def on_train_epoch_end(self, *given: Any) -> None:
            self.epochs += 1

    method = Own(**SETTINGS)
    fitted(package, method)
    assert (method.epochs, int(method.adapter.theta.count_nonzero())) == (3, 10)


@pytest.mark.parametrize("average", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_averages_keep_the_frozen_weights(package: Any, average: str) -> None:
    made = getattr(package.callbacks, average)(**({"decay": 0.7} if average[0] == "E" else {"swa_lrs": 0.01}))
    module = package.Project()
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    fitted(package, made, GPartCallback(**SETTINGS), module=module)
    assert torch.equal(module.net.state_dict()["0.weight"], before["0.weight"])
    assert not torch.equal(module.net.state_dict()["3.weight"], before["3.weight"])
    assert not torch.equal(module.net[0].weight, before["0.weight"])


@pytest.mark.parametrize("average", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_an_average_of_nothing_is_refused(package: Any, average: str) -> None:
    made = getattr(package.callbacks, average)(**({"decay": 0.7} if average[0] == "E" else {"swa_lrs": 0.01}))
    with pytest.raises(GPartError, match=f"{average} copies the module in its setup"):
        fitted(package, made, GPartCallback(**SETTINGS), module=package.InSetup())


def test_what_cannot_work_is_refused(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method = GPartCallback(**SETTINGS)
    pruning = package.callbacks.ModelPruning("l1_unstructured", amount=0.5)
    with pytest.raises(GPartError, match="ModelPruning is not supported beside GPartCallback"):
        fitted(package, method, pruning)
    with pytest.raises(GPartError, match="'typo' matches no module"):
        fitted(package, GPartCallback(d=3, target_modules=["typo"]))
    with pytest.raises(GPartError, match=r"one method at a time, got \['GPartCallback', 'BitFit'\]"):
        fitted(package, method, BitFit())
    with pytest.raises(GPartError, match="strategy 'ddp_spawn' is not supported"):
        method.setup(trainer(package, method, strategy="ddp_spawn", devices=2), package.Project(), "fit")
    run = trainer(package, method)
    run.strategy.__class__ = package.strategies.DeepSpeedStrategy
    with pytest.raises(GPartError, match="DeepSpeedStrategy is not supported"):
        method.setup(run, package.Project(), "fit")


def test_an_unfrozen_backbone_is_found(package: Any) -> None:
    class Finetuning(package.callbacks.BaseFinetuning):
        def freeze_before_training(self, module: Any) -> None:
            pass

        def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                module.net[0].requires_grad_(True)

    with pytest.raises(GPartError, match="that GPartCallback froze are to be trained again"):
        fitted(package, GPartCallback(**SETTINGS), Finetuning())


def test_an_evaluation_computes_the_weights_once(package: Any, evaluations: list[Any]) -> None:
    module, method = package.Project(), GPartCallback(**SETTINGS, weights="forward")
    run = trainer(package, method)
    run.validate(module, loader(), verbose=False)
    run.predict(module, loader())
    assert len(evaluations) == 2


def test_its_command_line_takes_the_callback(package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By class_path, where the parser asks for a subclass of the package's Callback."""
    monkeypatch.chdir(tmp_path)
    callback = {"class_path": "gpart.callbacks.GPartCallback", "init_args": SETTINGS}
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    args = {"trainer": {"accelerator": "cpu", "max_epochs": 1, "callbacks": callback, **quiet}}
    GPartCallback(**SETTINGS)
    cli = package.cli.LightningCLI(package.InSetup, run=False, args=args, save_config_callback=None)
    cli.trainer.fit(cli.model, loader())
    assert cli.trainer.callbacks[0].adapter.theta.count_nonzero() == 10


@pytest.mark.slow  # a process of its own
def test_the_other_package_is_imported_by_the_user_only() -> None:
    """Before or after ours."""
    pytest.importorskip("pytorch_lightning")
    script = """
import sys
import gpart.callbacks
gpart.callbacks.BitFit()
assert "pytorch_lightning" not in sys.modules and "lightning_fabric" not in sys.modules
import pytorch_lightning
assert isinstance(gpart.callbacks.BitFit(), pytorch_lightning.Callback)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
