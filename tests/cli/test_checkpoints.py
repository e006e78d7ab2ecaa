"""``--ckpt_path last`` and ``best``, and ``--resume``: each command finds the file of the run before it, or says that there is none."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest
import torch
import yaml

from gpart.cli import main

PROJECT = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Keeper(ModelCheckpoint):
    pass


class Own(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):  # the first epoch is the best
        self.log("val/score", -float(self.current_epoch))

    def test_step(self, batch, index):
        print("tested after step", self.trainer.ckpt_path)

    predict_step = test_step

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Data(LightningDataModule):
    def train_dataloader(self):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=4)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader
"""


KEEPER = {"monitor": "val/score", "mode": "max"}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("GPART_TRACEBACK", raising=False)
    Path("checkpoints_project.py").write_text(PROJECT)
    keeper = {"monitor": "val/score", "mode": "max", "save_top_k": -1}
    recipe = {
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "default_root_dir": "runs",
            "callbacks": [{"class_path": "ModelCheckpoint", "init_args": keeper}],
        },
        "model": {"class_path": "checkpoints_project.Own"},
        "data": {"class_path": "checkpoints_project.Data"},
        "method": {
            "class_path": "GPartCallback",
            "init_args": {"d": 5, "target_modules": ["0"], "modules_to_save": ["2"]},
        },
    }
    recipe["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    Path("own.yaml").write_text(yaml.safe_dump(recipe))


def gpart(command: str, *more: str) -> int:
    return main([command, "--config=own.yaml", *more])


def last() -> Path:
    return max(Path("runs").rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)


def of_epoch(epoch: int) -> Path:
    return next(Path("runs").rglob(f"epoch={epoch}-*.ckpt"))


@pytest.mark.parametrize("word", ["--ckpt_path=last", "--resume"])
def test_fit_goes_on_from_the_newest_to_the_bit(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpart("fit", "--trainer.max_epochs=3", "--trainer.default_root_dir=whole") == 0
    assert gpart("fit") == 0
    # A later file of an older epoch, as a copy makes it, would be another run.
    assert gpart("fit", word, "--trainer.max_epochs=3") == 0
    whole = torch.load(next(Path("whole").rglob("epoch=2-*.ckpt")), weights_only=True)
    resumed = torch.load(of_epoch(2), weights_only=True)
    assert (resumed["epoch"], resumed["global_step"]) == (2, 6)
    assert of_epoch(2).parts[2].endswith("-2")  # a folder of its own, beside that of the run of the same name
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


@pytest.mark.parametrize("command", ["test", "predict"])
def test_the_other_commands_take_both(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpart("fit") == 0
    for word, file in (("last", last()), ("best", of_epoch(0))):
        capsys.readouterr()
        assert gpart(command, f"--ckpt_path={word}") == 0
        assert f"tested after step {file}" in capsys.readouterr().out


def test_the_newest_is_told_by_its_time_not_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpart("fit") == 0
    os.utime(of_epoch(0), (2_000_000_000, 2_000_000_000))
    assert gpart("test", "--ckpt_path=last") == 0
    assert f"tested after step {of_epoch(0)}" in capsys.readouterr().out


def test_files_of_weights_alone_are_no_state_to_go_on_from(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = yaml.safe_load(Path("own.yaml").read_text())
    recipe["trainer"]["callbacks"].append({"class_path": "gpart.callbacks.SnapshotWriter"})
    Path("own.yaml").write_text(yaml.safe_dump(recipe))
    assert gpart("fit") == 0
    newest = max(Path("runs").rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert newest.parent.name == "snapshots"
    for word, file in (("last", last()), ("best", of_epoch(0))):
        capsys.readouterr()
        assert gpart("test", f"--ckpt_path={word}") == 0
        assert f"tested after step {file}" in capsys.readouterr().out
    assert gpart("fit", "--resume", "--trainer.max_epochs=3") == 0
    assert torch.load(of_epoch(2), weights_only=True)["global_step"] == 6
    # Where there is nothing else, they are what there is to test.
    for path in Path("runs").rglob("*.ckpt"):
        if path.parent.name != "snapshots":
            path.unlink()
    assert gpart("test", "--ckpt_path=last") == 0


def test_the_best_of_a_folder_that_was_moved(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpart("fit") == 0
    Path("runs").rename("moved")
    assert gpart("test", "--ckpt_path=best", "--trainer.default_root_dir=moved") == 0
    assert "tested after step moved" in capsys.readouterr().out


def test_what_keeps_the_last_is_not_asked_for_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = yaml.safe_load(Path("own.yaml").read_text())
    last = {"class_path": "ModelCheckpoint", "init_args": {"filename": "newest", "enable_version_counter": False}}
    recipe["trainer"]["callbacks"].insert(0, last)
    Path("own.yaml").write_text(yaml.safe_dump(recipe))
    assert gpart("fit") == 0
    assert gpart("test", "--ckpt_path=best") == 0
    assert f"tested after step {of_epoch(0)}" in capsys.readouterr().out


def test_a_folder_of_the_checkpoints_own_is_looked_in(capsys: pytest.CaptureFixture[str]) -> None:
    own = "--trainer.callbacks.init_args.dirpath=mine"
    assert gpart("fit", own) == 0
    assert gpart("test", own, "--ckpt_path=last") == 0
    assert "tested after step mine" in capsys.readouterr().out


def test_a_loggers_own_folder_is_looked_in(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logged"]
    assert gpart("fit", *own) == 0
    assert gpart("test", *own, "--ckpt_path=last") == 0
    assert "tested after step logged" in capsys.readouterr().out


@pytest.mark.parametrize(("word", "file"), [("last", "last.ckpt"), ("best", "epoch=0-")])
def test_a_folder_at_a_url_is_looked_in(word: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning writes there too."""
    own = f"--trainer.callbacks.init_args.dirpath=memory://checkpoints-{word}"
    try:
        assert gpart("fit", own) == 0
        assert gpart("test", own, f"--ckpt_path={word}") == 0
        assert f"tested after step memory://checkpoints-{word}/{file}" in capsys.readouterr().out.replace(":///", "://")
    finally:
        fsspec.filesystem("memory").rm(f"/checkpoints-{word}", recursive=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "--ckpt_path=last"], "--ckpt_path last: there is no checkpoint in runs: give a path, or"),
        (["fit", "--resume"], "--ckpt_path last: there is no checkpoint in runs: give a path, or"),
        (["test", "--ckpt_path=best"], "--ckpt_path best: there is no checkpoint in runs: give a path, or"),
        (
            ["fit", "--resume", "--ckpt_path=a.ckpt"],
            "--resume goes on from the newest checkpoint, and --ckpt_path is a.ckpt",
        ),
    ],
)
def test_what_is_not_there_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpart(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gpart: error: {said}")
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_a_newest_that_knows_no_best_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpart("fit") == 0
    of_epoch(0).unlink()
    assert gpart("test", "--ckpt_path=best") == 2
    assert "knows no best one that is there" in capsys.readouterr().err


def test_a_run_without_a_score_names_a_checkpoint_and_no_best_one(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = yaml.safe_load(Path("own.yaml").read_text())
    recipe["trainer"]["callbacks"] = []
    Path("own.yaml").write_text(yaml.safe_dump(recipe))
    assert gpart("fit") == 0
    printed = capsys.readouterr().out.splitlines()
    assert f"checkpoint: {of_epoch(1)}" in printed
    assert not any("best" in line for line in printed)
    assert gpart("test", "--ckpt_path=best") == 2
    error = capsys.readouterr().err
    assert (
        f"{last()}, the newest checkpoint, is of a run that chose none by a score (no ModelCheckpoint with a" in error
    )
    assert "--ckpt_path last, or give a path" in error


def test_a_run_that_was_stopped_before_its_first_score_has_no_best_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpart("fit", "--trainer.limit_val_batches=0", "--trainer.max_epochs=1") == 0
    assert gpart("test", "--ckpt_path=best") == 2
    assert "was written before one was kept by val/score: --ckpt_path last, or give" in capsys.readouterr().err


def test_a_keeper_of_ones_own_is_asked_for_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    own = "--trainer.callbacks.class_path=checkpoints_project.Keeper"
    assert gpart("fit", own) == 0
    assert f"best checkpoint: {of_epoch(0)}" in capsys.readouterr().out
    assert gpart("test", own, "--ckpt_path=best") == 0
    assert f"tested after step {of_epoch(0)}" in capsys.readouterr().out


def test_the_last_epochs_validation_is_told_by_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    names = '"val_loss": 0.5, "valid_acc": 0.25, "f1": 0.125'
    logs = f'self.log("train_loss", 1.0); self.log("other", 2.0); self.log_dict({{{names}}})'
    Path("named_project.py").write_text(PROJECT.replace('self.log("val/score", -float(self.current_epoch))', logs))
    words = ["--model.class_path=named_project.Own", "--trainer.callbacks.class_path=ModelCheckpoint"]
    assert gpart("fit", *words, "--trainer.callbacks.monitor=f1", "--trainer.callbacks.mode=max") == 0
    assert "last epoch:  val_loss 0.5000  valid_acc 0.2500  f1 0.1250\n" in capsys.readouterr().out


def fit_with(keeper: dict[str, object], *more: str) -> Path:
    """Fits with another ModelCheckpoint, by which the first epoch is the best; the run's folder."""
    recipe = yaml.safe_load(Path("own.yaml").read_text())
    recipe["trainer"]["callbacks"] = [{"class_path": "ModelCheckpoint", "init_args": {**KEEPER, **keeper}}]
    Path("own.yaml").write_text(yaml.safe_dump(recipe))
    assert gpart("fit", "--trainer.max_epochs=3", *more) == 0
    return last().parent


@pytest.mark.parametrize("save_last", [None, True, "link"])
def test_last_is_the_last_state_and_not_the_last_improvement(save_last: object) -> None:
    folder = fit_with({} if save_last is None else {"save_last": save_last})
    assert sorted(path.name for path in folder.iterdir()) == ["epoch=0-step=2.ckpt", "last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 6
    assert torch.load(folder / "epoch=0-step=2.ckpt", weights_only=True)["global_step"] == 2


def test_last_lies_where_the_runs_own_would(capsys: pytest.CaptureFixture[str]) -> None:
    fit_with({"dirpath": "runs/mine", "save_last": True})
    assert sorted(path.name for path in Path("runs/mine").iterdir()) == ["epoch=0-step=2.ckpt", "last.ckpt"]


def test_without_checkpoints_there_is_no_last_either() -> None:
    recipe = yaml.safe_load(Path("own.yaml").read_text())
    recipe["trainer"] |= {"callbacks": [], "enable_checkpointing": False}
    Path("own.yaml").write_text(yaml.safe_dump(recipe))
    assert gpart("fit") == 0
    assert not list(Path().rglob("*.ckpt"))


def test_a_resumed_run_knows_what_was_better_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit_with({})
    assert gpart("fit", "--resume", "--trainer.max_epochs=4") == 0
    assert f"best checkpoint: {folder / 'epoch=0-step=2.ckpt'}" in capsys.readouterr().out
    assert (folder / "epoch=0-step=2.ckpt").is_file()
    assert [path.name for path in last().parent.iterdir()] == ["last.ckpt"]
    assert last().parent != folder


def test_what_was_refused_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Else the next --resume would go on from the file of a run that was not to be."""
    folder = fit_with({})
    assert gpart("fit", "--resume", "--trainer.max_epochs=4", "--optimizer=SGD", "--optimizer.lr=0.5") == 2
    assert "goes on with its own optimizer" in capsys.readouterr().err
    assert last().parent == folder
