"""The adapter folder holds what is scored: the best checkpoint's numbers, where a score chose one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from gpart import GPartError, load_adapter
from gpart.serialization.folder import read_folder
from gpart.serialization.sources import read_adapter


@pytest.fixture
def fit(tmp_path: Path, lit_class: Any, lit_loader: Any, lit_gpart: Any, lit_trainer: Any) -> Any:
    """Fits four epochs of four steps of which the second is the best, and says what came of it."""

    class Scored(lit_class):
        def on_train_epoch_end(self) -> None:
            self.log("score", [0.5, 0.9, 0.7, 0.8][self.current_epoch])

    def run(keeper: dict[str, Any] | None = None, *callbacks: Any, **method: Any) -> tuple[Any, Any, Path]:
        torch.manual_seed(3)
        module, folder = Scored(), tmp_path / "adapter"
        given = {"monitor": "score", "mode": "max", "save_top_k": -1, **(keeper or {})}
        keepers = [] if keeper is None else [ModelCheckpoint(tmp_path / "kept", "{step}", **given)]
        every = [lit_gpart(save_folder=str(folder), **method), *callbacks, *keepers]
        keeps = any(isinstance(one, ModelCheckpoint) for one in every)
        trainer = lit_trainer(*every, enable_checkpointing=keeps, max_epochs=4)
        trainer.fit(module, lit_loader())
        return module, trainer, folder

    return run


def kept(folder: Path, step: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = read_adapter(folder.parent / "kept" / f"step={step}.ckpt")[1]
    return found


def test_the_folder_holds_the_best_checkpoint_bit_for_bit(fit: Any, lit_class: Any, same_bits: Any) -> None:
    module, trainer, folder = fit({})
    manifest, tensors = read_folder(folder)
    best, last = kept(folder, 8), kept(folder, 16)
    assert {"gpart.default.theta", "3.weight", "3.bias"} <= set(tensors) <= set(best)
    assert [name for name, value in tensors.items() if not same_bits(value, best[name])] == []
    assert not same_bits(tensors["gpart.default.theta"], last["gpart.default.theta"])
    assert manifest.about.score == {"step": 8, "monitor": "score", "value": pytest.approx(0.9)}
    # What is scored is what is saved, buffers as well; the model in memory is what fit left.
    assert same_bits(module.net.gpart.default.theta.detach(), last["gpart.default.theta"])
    scored, shared = lit_class().net, lit_class().net
    load_adapter(scored, trainer.checkpoint_callback.best_model_path)
    load_adapter(shared, folder)
    for name, value in scored.state_dict().items():
        assert same_bits(shared.state_dict()[name], value), name


def test_buffers_that_training_left_alone_are_not_in_the_folder(
    tmp_path: Path, lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Still(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.net.register_buffer("table", torch.arange(500.0))
            self.net.register_buffer("seen", torch.zeros(1))

        def training_step(self, *args: Any) -> Any:
            self.net.seen += 1
            self.log("score", self.net.seen[0])
            return super().training_step(*args)

    keeper = ModelCheckpoint(tmp_path / "kept", monitor="score", mode="max")
    method = lit_gpart(save_folder=str(tmp_path / "adapter"))
    lit_trainer(method, keeper, enable_checkpointing=True).fit(Still(), lit_loader())
    tensors = read_folder(tmp_path / "adapter")[1]
    assert "seen" in tensors
    assert "table" not in tensors


def test_a_fast_dev_run_leaves_the_folder_as_it_is(
    fit: Any, lit_class: Any, lit_loader: Any, lit_gpart: Any, lit_trainer: Any
) -> None:
    _, _, folder = fit()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    lit_trainer(lit_gpart(save_folder=str(folder)), fast_dev_run=2).fit(lit_class(), lit_loader())
    lit_trainer(lit_gpart(save_folder=str(folder / "new")), fast_dev_run=2).fit(lit_class(), lit_loader())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize(("keeper", "save"), [({}, "last"), (None, None), (None, "last"), ({"save_top_k": 0}, None)])
def test_else_it_holds_the_last_step(fit: Any, keeper: Any, save: Any, same_bits: Any) -> None:
    module, _, folder = fit(keeper, save=save)
    manifest, tensors = read_folder(folder)
    assert same_bits(tensors["gpart.default.theta"], module.net.gpart.default.theta.detach())
    assert manifest.about.score == {"step": 16}


def test_the_best_without_a_score_to_tell_it_by_is_refused_before_training(fit: Any, tmp_path: Path) -> None:
    with pytest.raises(GPartError, match=r"save='best' needs a ModelCheckpoint with a monitor, the trainer has \[\]"):
        fit(None, save="best")
    with pytest.raises(GPartError, match=r"has \['ModelCheckpoint'\] without one"):
        fit({"save_top_k": 0}, save="best")
    assert not (tmp_path / "adapter").exists()


def test_settings_are_checked_when_they_are_given(lit_gpart: Any) -> None:
    with pytest.raises(GPartError, match="save must be 'best' or 'last', got 'first'"):
        lit_gpart(save="first", save_folder="x")
    with pytest.raises(GPartError, match="save='best' says what save_folder is to hold, and save_folder is None"):
        lit_gpart(save="best")


class Loses(ModelCheckpoint):
    """Whose files are gone when fit ends."""

    def on_train_end(self, *args: Any) -> None:
        Path(self.best_model_path).unlink()


@pytest.mark.parametrize("save", [None, "best"])
def test_a_best_checkpoint_that_is_gone(fit: Any, save: Any, tmp_path: Path, same_bits: Any) -> None:
    keeper = Loses(tmp_path / "lost", monitor="score", mode="max")
    if save == "best":
        with pytest.raises(GPartError, match=r"was to hold the best checkpoint, and no checkpoint at .*step=8.ckpt"):
            fit(None, keeper, save=save)
        return
    with pytest.warns(UserWarning, match=r"no checkpoint at .*step=8.ckpt: .*adapter holds the last step's"):
        module, _, folder = fit(None, keeper, save=save)
    assert same_bits(read_folder(folder)[1]["gpart.default.theta"], module.net.gpart.default.theta.detach())


def test_merged_checkpoints_and_several_adapters_give_theirs(
    tmp_path: Path, fit: Any, lit_class: Any, lit_gpart: Any, lit_trainer: Any, same_bits: Any
) -> None:
    _, _, folder = fit({}, checkpoints="merged")
    assert same_bits(read_folder(folder)[1]["gpart.default.theta"], kept(folder, 8)["gpart.default.theta"])
    second = lit_gpart(name="second", seed=1, modules_to_save=None, save_folder=str(tmp_path / "second"))
    (folder.parent / "kept").rename(tmp_path / "first-kept")
    fit({}, second)
    path = tmp_path / "kept" / "step=8.ckpt"
    for name, at in (("default", folder), ("second", tmp_path / "second")):
        manifest, tensors = read_folder(at)
        expected = read_adapter(path, name)[1]
        assert manifest.name == name
        assert same_bits(tensors[f"gpart.{name}.theta"], expected[f"gpart.{name}.theta"])
        assert ("3.weight" in tensors) == (name == "default")
