"""A project of one's own, stopped by Ctrl-C in the middle of an epoch and gone on with: two commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from gpart.serialization.sources import read_adapter

PROJECT = """
import os, signal
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Own(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def training_step(self, batch, index):
        with Path("steps.txt").open("a") as file:
            print(self.current_epoch, index, self.global_step, file=file)
        if self.global_step == 14 and os.environ.get("PRESS") == "CTRL-C":
            signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background have it ignored
            os.kill(os.getpid(), signal.SIGINT)  # what the terminal does
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):  # the first epoch is the best
        self.log("val/score", -float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Data(LightningDataModule):
    def train_dataloader(self):  # ten equal batches, since Lightning begins a plain loader again in a resumed epoch
        inputs = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).repeat(10, 1)
        return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=4)

    val_dataloader = train_dataloader
"""

RECIPE = {
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 3,
        "default_root_dir": "runs",
        "callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/score", "mode": "max"}}],
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "model": {"class_path": "stopped_project.Own"},
    "data": {"class_path": "stopped_project.Data"},
    "method": {
        "class_path": "GPartCallback",
        "init_args": {"d": 5, "target_modules": ["0"], "modules_to_save": ["2"]},
    },
}


def gpart(folder: Path, *words: str, press: str = "") -> subprocess.CompletedProcess[str]:
    # Nor the seed that an earlier test has left for Lightning's ranks.
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PL_"))}
    path = os.pathsep.join(filter(None, [str(folder), own.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "gpart.cli", *words],
        cwd=folder, env={**own, "PRESS": press, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def project(folder: Path) -> Path:
    folder.mkdir()
    (folder / "stopped_project.py").write_text(PROJECT)
    (folder / "own.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def last(folder: Path) -> Path:
    return max(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)


def state(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = read_adapter(last(folder))[1]
    return found


@pytest.mark.slow  # three processes
def test_a_run_that_ctrl_c_has_stopped_goes_on_at_its_step(tmp_path: Path) -> None:
    folder, whole = project(tmp_path / "stopped"), project(tmp_path / "whole")
    stopped = gpart(folder, "fit", "--config=own.yaml", press="CTRL-C")
    assert stopped.returncode == 1
    assert f"stopped after step 14, written to {last(folder)}".replace(f"{folder}/", "") in stopped.stderr.replace(
        f"{folder}/", ""
    )
    assert torch.load(last(folder), weights_only=True)["global_step"] == 14
    assert (folder / "steps.txt").read_text().splitlines()[-1] == "1 4 14"

    resumed = gpart(folder, "fit", "--config=own.yaml", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    taken = [line.split() for line in (folder / "steps.txt").read_text().splitlines()[15:]]
    assert taken[0] == ["1", "4", "14"]
    assert [int(step) for _, _, step in taken] == list(range(14, 30))
    # It is the run that nobody has stopped, and the best is still the first epoch's.
    assert gpart(whole, "fit", "--config=own.yaml").returncode == 0
    expected = state(whole)
    assert state(folder).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state(folder).items())
    assert "best checkpoint: runs/lightning_logs/own-GPart-d5-seed0/checkpoints/epoch=0-step=10.ckpt" in resumed.stdout
