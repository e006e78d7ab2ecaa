"""Checkpoints hold what is trained, go on exactly, fit or are refused by name, and are whole or the old one."""

from __future__ import annotations

import enum
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gpart import GPartConfig, attach, load_adapter
from gpart.callbacks import (
    AtomicCheckpointIO,
    GPartCallback,
    GPartCheckpointIO,
    LinearProbe,
    load_from_checkpoint,
)
from gpart.callbacks.checkpoints.hyperparameters import loadable

DATA = TensorDataset(torch.randn(16, 8), torch.arange(16) % 2)


class Module(LightningModule):
    """BatchNorm, a schedule, AdamW: all that a checkpoint has to bring back."""

    def __init__(
        self, width: int = 16, base: int = 0, where: str = "init", extra: Any = None, lr: float = 1e-2
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.net = lr, None
        if where == "init":
            self.build()

    def build(self) -> None:
        torch.manual_seed(self.hparams["base"])
        width = self.hparams["width"]
        self.net = nn.Sequential(
            nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 2)
        )

    def setup(self, stage: str) -> None:
        if self.hparams["where"] == "setup" and self.net is None:
            self.build()

    def configure_model(self) -> None:
        if self.hparams["where"] == "configure_model" and self.net is None:
            self.build()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]


def gpart(**more: Any) -> GPartCallback:
    return GPartCallback(**{"d": 10, "target_modules": ["0"], "modules_to_save": ["4"], **more})


def trainer(folder: Path, *callbacks: Any, **more: Any) -> Trainer:
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**{**settings, "default_root_dir": folder, "callbacks": list(callbacks), "max_epochs": 2, **more})


def loader() -> DataLoader:
    return DataLoader(DATA, batch_size=4)


def fitted(folder: Path, *callbacks: Any, method: Any = None, module: Module | None = None, **more: Any) -> tuple:
    """A module after fit, its trainer and its last checkpoint."""
    keeper = ModelCheckpoint(folder, monitor="val/loss", save_last=True)
    run = trainer(folder, method or gpart(), *callbacks, keeper, **more)
    module = module or Module()
    run.fit(module, loader(), loader())
    return module, run, Path(keeper.last_model_path)


def bits(module: LightningModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


TRAINED = {"net.4.weight", "net.4.bias", "net.0.gpart.default.theta"}
BUFFERS = {"net.1.running_mean", "net.1.running_var", "net.1.num_batches_tracked"}


def test_a_checkpoint_holds_what_is_trained_and_nothing_else(tmp_path: Path) -> None:
    _, _, path = fitted(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    keys = {key for key in checkpoint["state_dict"] if not key.startswith("This checkpoint")}
    assert keys == TRAINED | BUFFERS
    states = checkpoint["optimizer_states"][0]["state"].values()
    assert sorted(state["exp_avg"].numel() for state in states) == [2, 10, 32]
    usual = tmp_path / "usual"
    usual.touch()
    assert os.stat(path).st_mode == os.stat(usual).st_mode


@pytest.mark.parametrize("where", ["init", "setup", "configure_model"])
def test_resume_goes_on_exactly(tmp_path: Path, where: str) -> None:
    """Theta, head, buffers, optimizer and schedule come back bit for bit."""
    _, _, path = fitted(tmp_path / "first", module=Module(where=where), max_epochs=1)
    state = torch.load(path, weights_only=True)
    looked = []
    second = Module(where=where)
    callback = gpart()
    resumed = trainer(tmp_path / "second", callback, max_epochs=2)

    class Check(ModelCheckpoint):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            looked.append(trainer.global_step)
            now = pl_module.state_dict()
            for key in TRAINED | BUFFERS:
                assert torch.equal(now[key], state["state_dict"][key]), key
            saved, live = state["optimizer_states"][0], trainer.optimizers[0].state_dict()
            assert saved["param_groups"] == live["param_groups"]
            for index, values in saved["state"].items():
                for key, value in values.items():
                    assert torch.equal(torch.as_tensor(live["state"][index][key]), torch.as_tensor(value))
            assert trainer.lr_scheduler_configs[0].scheduler.state_dict() == state["lr_schedulers"][0]

    resumed.callbacks.append(Check())
    resumed.fit(second, loader(), loader(), ckpt_path=path)
    assert looked == [4]
    assert resumed.global_step == 8
    assert callback.adapter.theta.count_nonzero() > 0


def test_an_interrupted_run_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    class Plain(Module):
        def build(self) -> None:
            super().build()
            self.net[3].p = 0.0

    whole, _, _ = fitted(tmp_path / "a", module=Plain(), max_epochs=3)
    _, _, path = fitted(tmp_path / "b", module=Plain(), max_epochs=1)
    resumed = Plain()
    trainer(tmp_path / "c", gpart(), max_epochs=3).fit(resumed, loader(), loader(), ckpt_path=path)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_best_weights_only_and_predict(tmp_path: Path) -> None:
    module, run, path = fitted(tmp_path)
    run.test(module, loader(), ckpt_path="best", verbose=False)
    module, run, path = fitted(tmp_path / "light")
    light = tmp_path / "light.ckpt"
    run.save_checkpoint(light, weights_only=True)
    checkpoint = torch.load(light, weights_only=True)
    assert "optimizer_states" not in checkpoint
    assert checkpoint["gpart"]["module"] == "net"
    expected = torch.cat(run.predict(module, loader()))
    for file in (path, light):
        again = torch.cat(trainer(tmp_path, gpart()).predict(Module(), loader(), ckpt_path=file))
        assert torch.equal(again, expected)


@pytest.mark.parametrize("how", ["tuner", "callback"])
def test_lr_find_leaves_theta_at_its_start(tmp_path: Path, how: str) -> None:
    module, callback = Module(), gpart()
    if how == "tuner":
        run = trainer(tmp_path, callback)
        Tuner(run).lr_find(module, loader(), num_training=12)
        assert torch.equal(callback.adapter.theta, torch.zeros(10))
        assert not list(tmp_path.glob(".lr_find*"))
    else:
        run = trainer(tmp_path, LearningRateFinder(num_training_steps=12), callback)
    run.fit(module, loader())
    assert callback.adapter.theta.count_nonzero() > 0


@pytest.mark.parametrize("where", ["init", "configure_model"])
def test_load_from_checkpoint(tmp_path: Path, where: str) -> None:
    module, _, path = fitted(tmp_path, module=Module(where=where))
    loaded = load_from_checkpoint(Module, path)
    data = torch.randn(5, 8)
    assert torch.equal(loaded.eval().net(data), module.eval().net(data))
    with pytest.raises(RuntimeError, match=r"gpart\.callbacks\.load_from_checkpoint"):
        Module.load_from_checkpoint(path)
    network = Module().net
    adapter = load_adapter(network, path)
    assert torch.equal(network.eval()(data), module.net(data))
    assert adapter.config.d == 10


def test_load_from_checkpoint_says_what_it_cannot(tmp_path: Path) -> None:
    _, _, path = fitted(tmp_path, module=Module(where="setup"))
    with pytest.raises(ValueError, match="configure_model"):
        load_from_checkpoint(Module, path)
    torch.save({"state_dict": {}}, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="holds no GPart adapter"):
        load_from_checkpoint(Module, tmp_path / "plain.ckpt")
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt"):
        load_from_checkpoint(Module, tmp_path / "nothing.ckpt")


def _without(key: str) -> Any:
    return lambda checkpoint: checkpoint["state_dict"].pop(key)


def _with(key: str) -> Any:
    return lambda checkpoint: checkpoint["state_dict"].update({key: torch.zeros(2)})


def _nan(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"]["net.0.gpart.default.theta"][3] = float("nan")


REFUSED = [
    (_without("net.0.gpart.default.theta"), {}, r"keys missing \['0\.gpart\.default\.theta'\]"),
    (_without("net.4.bias"), {}, r"keys missing \['4\.bias'\]"),
    (_without("net.1.running_var"), {}, r"keys missing \['1\.running_var'\]"),
    (_with("net.surplus"), {}, r"keys too many \['surplus'\]"),
    (_with("net.4.bias.more"), {}, r"keys too many \['4\.bias\.more'\]"),
    (_nan, {}, "1 of the 10 numbers of gpart.default.theta are NaN"),
    (lambda c: c.pop("gpart"), {}, "holds no adapter"),
    (lambda c: c["gpart"].update(module="other"), {}, "adapts submodule 'other', here it is 'net'"),
    (lambda c: c["gpart"]["manifest"].update(scheme="gpart-v2"), {}, "'gpart-v2'.*'gpart-v1'"),
    (lambda c: c["gpart"]["manifest"].update(size=129), {}, "D = 129, this model has D = 128"),
    (lambda c: None, {"base": 1}, "another base model"),
    (lambda c: None, {"width": 17}, r"\[16, 8\].*\[17, 8\]"),
    (lambda c: None, {"method": "d"}, "d is 10 and 11"),
    (lambda c: None, {"method": "probe"}, "was trained by GPart, this run uses LinearProbe"),
]


@pytest.mark.parametrize(("change", "run", "said"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, change: Any, run: dict[str, Any], said: str) -> None:
    _, _, path = fitted(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    run = dict(run)
    method = {"d": gpart(d=11), "probe": LinearProbe(["4"])}.get(run.pop("method", ""), gpart())
    module = Module(**run)
    fresh = trainer(tmp_path, method, max_epochs=3)
    before = bits(module)
    with pytest.raises(ValueError, match=said):
        fresh.fit(module, loader(), ckpt_path=path)
    after = {key.replace("parametrizations.weight.original", "weight"): value for key, value in bits(module).items()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not after.get("net.0.gpart.default.theta", torch.zeros(1)).any()


def test_a_damaged_file_never_loads_wrongly(tmp_path: Path) -> None:
    _, _, path = fitted(tmp_path)
    content = path.read_bytes()
    randomly = random.Random(0)
    module, method = Module(), gpart()
    run = trainer(tmp_path, method)
    run.test(module, loader(), verbose=False)
    plugin = run.strategy.checkpoint_io
    good = plugin.load_checkpoint(path)["state_dict"]
    damaged = [content[: randomly.randrange(len(content))] for _ in range(20)]
    for _ in range(60):
        at = randomly.randrange(len(content))
        damaged.append(content[:at] + bytes([content[at] ^ 1 << randomly.randrange(8)]) + content[at + 1 :])
    refused = 0
    for changed in damaged:
        path.write_bytes(changed)
        try:
            state = plugin.load_checkpoint(path)["state_dict"]
        except ValueError:
            refused += 1
        else:
            assert list(state) == list(good)
    assert refused >= 20


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, _, path = fitted(tmp_path)
    torch.save({"state_dict": Malicious()}, path)
    for load in (
        lambda: trainer(tmp_path, gpart()).fit(Module(), loader(), ckpt_path=path),
        lambda: load_from_checkpoint(Module, path),
        lambda: load_adapter(Module().net, path),
    ):
        with pytest.raises(ValueError, match=r"cannot be read|holds no"):
            load()
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match="cannot be read"):
        load_adapter(Module().net, path)
    assert not Path("executed").exists()


class Own(TorchCheckpointIO):
    """A user's plugin, with a count."""

    saved = 0

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.saved += 1
        super().save_checkpoint(*args, **kwargs)


@pytest.mark.parametrize(
    "plugin",
    [
        GPartCheckpointIO,
        AsyncCheckpointIO,
        lambda: GPartCheckpointIO(AsyncCheckpointIO()),
        Own,
        lambda: AsyncCheckpointIO(Own()),
    ],
)
def test_other_plugins(tmp_path: Path, plugin: Any) -> None:
    module, run, path = fitted(tmp_path, plugins=[plugin()])
    assert isinstance(run.strategy.checkpoint_io, GPartCheckpointIO)
    keys = set(torch.load(path, weights_only=True)["state_dict"])
    assert keys > TRAINED
    assert "net.0.bias" not in keys
    run.test(module, loader(), ckpt_path=path, verbose=False)


def test_an_averaging_callback_keeps_no_frozen_weight_and_resumes(tmp_path: Path) -> None:
    average = WeightAveraging(avg_fn=lambda old, new, count: old + (new - old) / (count + 1))
    _, _, path = fitted(tmp_path, average)
    checkpoint = torch.load(path, weights_only=True)
    assert "net.0.weight" not in checkpoint["current_model_state"]
    again = WeightAveraging(avg_fn=lambda old, new, count: old + (new - old) / (count + 1))
    module = Module()
    trainer(tmp_path, gpart(), again, max_epochs=3).fit(module, loader(), loader(), ckpt_path=path)


class Slow(TorchCheckpointIO):
    """Writes when it is told to, or fails."""

    def __init__(self) -> None:
        self.go, self.fail = threading.Event(), False

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        self.go.wait(20)
        if self.fail:
            raise OSError("disk full")
        super().save_checkpoint(checkpoint, path)


@pytest.mark.parametrize("fail", [False, True])
def test_the_old_checkpoint_goes_only_when_the_new_one_is_whole(tmp_path: Path, fail: bool) -> None:
    slow = Slow()
    plugin = GPartCheckpointIO(AsyncCheckpointIO(slow))
    old, new = tmp_path / "old.ckpt", tmp_path / "new.ckpt"
    torch.save({"state_dict": {}}, old)
    slow.fail = fail
    plugin.save_checkpoint({"state_dict": {}}, new)
    plugin.remove_checkpoint(old)
    time.sleep(0.1)
    assert old.exists()
    slow.go.set()
    if fail:
        with pytest.raises(OSError, match="disk full"):
            plugin.teardown()
        assert old.exists()
    else:
        plugin.teardown()
        assert new.exists()
        assert not old.exists()


def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        AtomicCheckpointIO().save_checkpoint({"a": lambda: 1}, path)
    assert torch.load(path, weights_only=True) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.slow  # kills a run again and again; test_checkpoint kills a writer once
def test_a_killed_process_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    code = (
        "import sys, torch; from gpart.callbacks import AtomicCheckpointIO\n"
        "i = 0\nwhile True:\n"
        "    i += 1; AtomicCheckpointIO().save_checkpoint({'i': i, 'x': torch.full((500_000,), i)}, sys.argv[1])\n"
        "    print(i, flush=True)\n"
    )
    for pause in (0.01, 0.05, 0.11):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert process.stdout
        process.stdout.readline()
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        loaded = torch.load(path, weights_only=True)
        assert (loaded["x"] == loaded["i"]).all()


class Colour(str, enum.Enum):  # noqa: UP042 - as it stands in many projects
    RED = "red"


class Mode(enum.Enum):
    FAST = 1


@dataclass
class Settings:
    lr: float = 0.1


def test_harmless_hyperparameters_are_converted(tmp_path: Path) -> None:
    extra = {"path": Path("a/b"), "lr": np.float32(0.5), "w": np.arange(3), "colour": Colour.RED, "n": [np.int64(3)]}
    _, _, path = fitted(tmp_path, module=Module(extra=extra))
    found = torch.load(path, weights_only=True)["hyper_parameters"]["extra"]
    assert torch.equal(found.pop("w"), torch.arange(3))
    assert found == {"path": "a/b", "lr": 0.5, "colour": "red", "n": [3]}
    assert load_from_checkpoint(Module, path).hparams["extra"]["path"] == "a/b"


def test_a_type_that_the_user_has_allowed_is_kept(tmp_path: Path) -> None:
    with torch.serialization.safe_globals([Settings]):
        assert loadable({"a": Settings()}) == {"a": Settings()}


def test_the_probes_checkpoint(tmp_path: Path) -> None:
    probe = LinearProbe(["4"])
    _module, _run, path = fitted(tmp_path, method=probe)
    keys = {key for key in torch.load(path, weights_only=True)["state_dict"] if "This checkpoint" not in key}
    assert keys == {"net.4.weight", "net.4.bias"} | BUFFERS
    trainer(tmp_path, LinearProbe(["4"]), max_epochs=3).fit(Module(), loader(), ckpt_path=path)
    with pytest.raises(ValueError, match="trained on base"):
        trainer(tmp_path, LinearProbe(["4"]), max_epochs=3).fit(Module(base=1), loader(), ckpt_path=path)
    with pytest.raises(ValueError, match="is no adapter's"):
        trainer(tmp_path, gpart(), max_epochs=3).fit(Module(), loader(), ckpt_path=path)


def test_the_config_in_a_checkpoint_is_the_adapters(tmp_path: Path) -> None:
    _, _, path = fitted(tmp_path)
    manifest = torch.load(path, weights_only=True)["gpart"]["manifest"]
    config = GPartConfig(d=10, target_modules=["0"], modules_to_save=["4"])
    assert GPartConfig(**manifest["config"]) == config
    adapter = attach(Module().net, config)
    assert manifest["size"] == adapter.size
