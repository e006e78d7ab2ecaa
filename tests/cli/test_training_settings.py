"""What ``gpart fit`` trains with: the optimizer that the words name, and on resume what they ask for or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import yaml

from gpart.cli import main
from gpart.cli.resume import SETTINGS_KEY

PROJECT = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Own(LightningModule):
    def __init__(self, lr: float = 0.05, scale: float = 1.0, plateau: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = None

    def configure_model(self):
        if self.net is None:
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def training_step(self, batch, index):
        self.log("loss", 1.0)
        return self.hparams.scale * nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        made = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        if self.hparams.plateau:
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(made, patience=0, factor=0.5)
            return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "monitor": "loss"}}
        return [made], [torch.optim.lr_scheduler.LambdaLR(made, lambda step: 0.5**step)]


class Data(LightningDataModule):
    def train_dataloader(self):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), 4)
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("GPART_TRACEBACK", raising=False)
    Path("training_settings_project.py").write_text(PROJECT)
    recipe = {
        "trainer": {"accelerator": "cpu", "logger": False, "max_epochs": 1, "default_root_dir": "runs"},
        "model": {"class_path": "training_settings_project.Own"},
        "data": {"class_path": "training_settings_project.Data"},
        "method": {
            "class_path": "GPartCallback",
            "init_args": {"d": 5, "target_modules": ["0"], "modules_to_save": ["2"]},
        },
    }
    recipe["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False}
    Path("own.yaml").write_text(yaml.safe_dump(recipe))


def fit(*more: str) -> int:
    return main(["fit", "--config=own.yaml", *more])


def resume(*more: str) -> int:
    return fit("--trainer.max_epochs=2", f"--ckpt_path={written(0)}", *more)


def written(epoch: int) -> Path:
    return next(Path("runs").rglob(f"epoch={epoch}-*.ckpt"))


def read(epoch: int) -> dict[str, Any]:
    return torch.load(written(epoch), weights_only=True)


def test_an_optimizer_and_a_schedule_replace_the_models_own() -> None:
    words = ["--optimizer=SGD", "--optimizer.lr=0.5", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]
    assert fit(*words) == 0
    saved = read(0)
    (group,) = saved["optimizer_states"][0]["param_groups"]
    assert group["initial_lr"] == 0.5
    assert "momentum" in group
    assert saved["lr_schedulers"][0]["step_size"] == 1
    theta = next(value for name, value in saved["state_dict"].items() if name.endswith("gpart.default.theta"))
    assert theta.count_nonzero() == 5  # the network is built after __init__: the optimizer must be made after it
    assert resume(*words) == 0
    assert read(1)["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.005)


def test_without_it_the_models_own_is_made() -> None:
    assert fit() == 0
    assert read(0)["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.05


def test_a_schedule_of_no_optimizer_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--lr_scheduler=StepLR", "--lr_scheduler.step_size=1") == 2
    assert "StepLR needs --optimizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "then", "values"),
    [
        ([], ["--model.lr=0.001"], "lr is 0.05 there, 0.001 was asked for"),
        ([], ["--model.init_args.lr", "0.001"], "lr is 0.05 there, 0.001 was asked for"),
        (["--optimizer=SGD", "--optimizer.lr=0.1"], ["--optimizer=SGD", "--optimizer.lr=0.2"], "lr is 0.1 there, 0.2"),
        (["--optimizer=SGD", "--optimizer.lr=0.1"], [], "momentum is 0.0 there, None was asked for"),
    ],
)
def test_a_setting_that_the_resumed_optimizer_would_not_take_is_refused(
    first: list[str], then: list[str], values: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(*first) == 0
    assert resume(*then) == 2
    assert values in capsys.readouterr().err
    assert not list(Path("runs").rglob("epoch=1-*.ckpt"))


def test_a_file_of_a_trainer_without_the_command_is_compared_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit() == 0
    saved = read(0)
    del saved[SETTINGS_KEY]
    torch.save(saved, written(0))
    assert resume("--model.lr=0.001") == 2
    assert "lr is 0.05 there, 0.001 was asked for" in capsys.readouterr().err
    assert resume() == 0


def test_words_go_over_the_checkpoint_and_that_over_the_recipe() -> None:
    assert fit("--model.lr=0.02", "--model.scale=2") == 0
    assert resume("--model.scale=3") == 0  # the recipe's lr is 0.05
    saved = read(1)
    assert saved["hyper_parameters"]["scale"] == 3
    assert saved["hyper_parameters"]["lr"] == 0.02
    assert saved["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.02


def test_a_checkpoint_at_a_url_is_one_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--model.scale=3", "--model.lr=0.02") == 0
    fsspec.filesystem("memory").pipe_file("/settings/a.ckpt", written(0).read_bytes())
    words = ["--trainer.max_epochs=2", "--ckpt_path=memory://settings/a.ckpt"]
    assert fit(*words, "--model.lr=0.01") == 2
    assert "lr is 0.02 there, 0.01 was asked for" in capsys.readouterr().err
    assert fit(*words) == 0
    assert read(1)["hyper_parameters"]["scale"] == 3
    assert fit(words[0], "--ckpt_path=memory://settings/nosuch.ckpt") == 2
    assert "no checkpoint at memory://settings/nosuch.ckpt" in capsys.readouterr().err


def test_what_a_schedule_has_changed_is_no_other_setting() -> None:
    words = ["--model.plateau=true", "--model.lr=0.02", "--trainer.max_epochs=3"]
    assert fit(*words) == 0
    assert read(2)["optimizer_states"][0]["param_groups"][0]["lr"] < 0.02
    assert fit(*words[:2], "--trainer.max_epochs=4", f"--ckpt_path={written(2)}") == 0
    assert read(3)["epoch"] == 3


def test_an_unknown_method_lists_methods_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--method=LoRA") == 2
    said = capsys.readouterr().err
    assert (
        "gpart's are BitFit, FullFineTuning, GPartCallback, LinearProbe, PartialFineTuning, PeftCallback, others"
        in said
    )
