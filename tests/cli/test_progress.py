"""What a run shows on its way: lines where no terminal is, a bar with epochs from 1 in one, and little before the first step."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gpart.callbacks import LinearProbe
from gpart.cli import progress
from gpart.cli.progress import EpochBar, ProgressLines, TrainedWeights, shown_progress


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.frozen = nn.Linear(3, 1).requires_grad_(False)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self.layer(batch).sum() * 0 + 0.5

    def configure_optimizers(self) -> Any:
        groups = [{"params": [self.layer.bias], "lr": 0.001}, {"params": [self.layer.weight], "lr": 0.25}]
        return torch.optim.SGD(groups)


def fit(at: Path, batches: int = 40, **settings: Any) -> Trainer:
    chosen = {"max_epochs": 2, "enable_progress_bar": False, "callbacks": [ProgressLines()], "logger": False} | settings
    trainer = Trainer(
        default_root_dir=at, enable_model_summary=False, enable_checkpointing=False, accelerator="cpu", **chosen
    )
    trainer.fit(Net(), DataLoader(torch.ones(batches, 3)))
    return trainer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its first number is added to the time at each look at it."""
    now, step = [100.0], [0.5]

    def monotonic() -> float:
        now[0] += step[0]
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", monotonic)
    return step


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]


def test_a_line_for_the_first_step_and_every_tenth_of_an_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    fit(tmp_path)
    said = lines(capsys)
    assert len(said) == 1 + 2 * 10
    assert said[0] == "epoch 1/2  step 1/80  loss 0.5000  lr 0.25  2 steps/s  0:00:40 left"
    assert said[1].startswith("epoch 1/2  step 4/80  ")
    assert said[-11].startswith("epoch 1/2  step 40/80  ")
    assert said[-1] == "epoch 2/2  step 80/80  loss 0.5000  lr 0.25  2 steps/s  0:00:00 left"


def test_a_line_every_ten_seconds_where_steps_are_slow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    clock[0] = 3.0
    fit(tmp_path, batches=100, max_epochs=1)
    steps = [int(re.search(r"step (\d+)", line)[1]) for line in lines(capsys)]
    assert steps[:8] == [1, 5, 9, 10, 14, 18, 20, 24]


def test_at_most_a_line_a_second_where_epochs_are_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    clock[0] = 0.1
    fit(tmp_path)
    steps = [int(re.search(r"step (\d+)", line)[1]) for line in lines(capsys)]
    assert steps == [1, 12, 24, 36, 48, 60, 72, 80]


def test_what_is_not_known_is_not_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    fit(tmp_path, max_epochs=-1, max_steps=-1, limit_train_batches=5, max_time={"seconds": 1})
    assert re.fullmatch(r"epoch 1  step 1  loss 0.5000  lr 0.25  [12] steps/s", lines(capsys)[0])


def test_the_loss_of_accumulated_batches_is_one_batchs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, max_epochs=1, accumulate_grad_batches=4)
    said = lines(capsys)
    assert all("loss 0.5000" in line for line in said)
    assert said[-1].startswith("epoch 1/1  step 10/10")


def test_no_line_where_there_is_a_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, enable_progress_bar=True, callbacks=[ProgressLines()])
    assert not lines(capsys)


@pytest.mark.parametrize(("last", "said"), [(3, "Epoch 1/3 "), (-1, "Epoch 1   ")])
def test_the_bar_counts_epochs_from_1(tmp_path: Path, last: int, said: str) -> None:
    bar = EpochBar()
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=last, callbacks=[bar], logger=False, accelerator="cpu")
    bar._trainer = trainer
    assert bar._get_train_description(0) == said


@pytest.mark.parametrize(
    ("terminal", "asked", "own", "kinds", "enabled"),
    [
        (True, None, [], [TrainedWeights, EpochBar], True),
        (True, True, [], [TrainedWeights, EpochBar], True),
        (True, False, [], [TrainedWeights], False),
        (True, None, [RichProgressBar()], [TrainedWeights], None),
        (False, None, [], [TrainedWeights, ProgressLines], False),
        (False, True, [], [TrainedWeights, ProgressLines], True),
        (False, None, [RichProgressBar()], [TrainedWeights, ProgressLines], None),
    ],
)
def test_a_bar_in_a_terminal_and_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    asked: bool | None,
    own: list[ProgressBar],
    kinds: list[type],
    enabled: bool | None,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    settings = {"enable_progress_bar": asked, "callbacks": own}
    assert [type(each) for each in shown_progress(settings)] == kinds
    assert settings["enable_progress_bar"] is enabled
    assert shown_progress({"enable_progress_bar": asked, "callbacks": None})


def test_without_a_method_the_trained_weights_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, callbacks=[TrainedWeights()])
    assert "no method: 4 of 8 weights are trained\n" in capsys.readouterr().out
    fit(tmp_path, callbacks=[TrainedWeights(), LinearProbe(["layer"])])
    assert "no method" not in capsys.readouterr().out


IN_TERMINAL = """
import os, pty, sys
def read(descriptor):
    data = os.read(descriptor, 4096)
    sys.stderr.buffer.write(data)
    return data
sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.executable, "-m", "gpart.cli", *sys.argv[1:]], read)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo terminals")
def test_at_most_15_lines_stand_before_the_first_step_in_a_terminal(tmp_path: Path) -> None:
    words = ["fit", "--config=quickstart", "--trainer.max_steps=2", "--data.train_size=64"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200", "TERM": "xterm"}
    asked = [sys.executable, "-c", IN_TERMINAL, *words]
    done = subprocess.run(asked, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", done.stderr.decode())
    assert done.returncode == 0, shown
    before = shown.partition("Epoch 1/2")[0]
    said = [line for line in before.split("\n") if line.rpartition("\r")[0].strip()]
    assert "Sanity Checking" in said[-1]
    assert len(said) - 1 <= 15, before
    for noise in ("LOAD REPORT", "FLOPs", "Tip:", "TPU"):
        assert noise not in shown
    assert "Epoch 0" not in shown
