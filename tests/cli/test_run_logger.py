"""The command's own logger: runs have names, failed ones leave nothing, one event file a command, scores beside settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gpart.cli import main
from gpart.cli.run_logger import run_logger


class Net(LightningModule):
    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.layer, self.fails = nn.Linear(3, 1), fails

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        if self.fails:
            raise RuntimeError("own trouble")
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.log("val/accuracy", 0.75)

    def test_step(self, batch: Tensor, index: int) -> None:
        self.log("test/accuracy", 0.5)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(4, 3))

    val_dataloader = test_dataloader = train_dataloader


WORDS = [
    f"--model={__name__}.Net",
    f"--data={__name__}.Data",
    "--method=LinearProbe",
    "--method.modules_to_save=[layer]",
    "--trainer.default_root_dir=runs",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--seed_everything=3",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "mine.yaml").write_text("trainer: {log_every_n_steps: 1}\n")


def runs() -> list[str]:
    return sorted(path.name for path in Path("runs/lightning_logs").glob("*"))


def test_runs_have_names_and_do_not_collide_and_write_one_event_file() -> None:
    for _ in range(2):
        assert main(["fit", "--config=mine.yaml", *WORDS, "--test_best=true"]) == 0
    assert runs() == ["mine-LinearProbe-seed3", "mine-LinearProbe-seed3-2"]
    for name in runs():
        assert len(list(Path("runs/lightning_logs", name).glob("events*"))) == 1
        assert list(Path("runs/lightning_logs", name).rglob("*.ckpt"))
    assert main(["test", "--config=mine.yaml", *WORDS]) == 0
    assert runs()[-1] == "mine-LinearProbe-seed3-test"


def test_settings_and_final_scores_are_in_the_hparams_tab() -> None:
    assert main(["fit", "--config=mine.yaml", *WORDS]) == 0
    file = EventAccumulator(str(Path("runs/lightning_logs", runs()[0])))
    file.Reload()
    assert [event.value for event in file.Scalars("final/val/accuracy")] == [0.75]
    content = file.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"modules_to_save" in content
    assert b"seed" in content


def test_a_run_that_makes_no_step_leaves_no_folder() -> None:
    with pytest.raises(RuntimeError, match="own trouble"):
        main(["fit", "--config=mine.yaml", *WORDS, "--model.fails=true"])
    assert runs() == []


def test_a_logger_of_ones_own_stays_and_slurm_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["fit", "--config=mine.yaml", *WORDS, "--trainer.logger=false"]) == 0
    assert not Path("runs/lightning_logs").exists()
    assert run_logger(None, "a") is not None
    monkeypatch.setattr("gpart.cli.run_logger.SLURMEnvironment.job_id", lambda: 7)
    assert run_logger(None, "a") is None
