"""Two adapters, trained together by two processes: each has one theta on both ranks, and one file holds both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset
from two_adapters import Project, callbacks

from gpart import get_adapters
from gpart.callbacks import load_from_checkpoint

ROWS = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


class Summed(Project):
    """By an optimizer that makes nothing of a rounding, as AdamW's quotient does."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([value for value in self.parameters() if value.requires_grad], lr=0.5)


def main(out: Path, devices: int = 2) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks(),
    )
    module = Summed()
    data = TensorDataset(ROWS, (ROWS.sum(1) > 0).long())
    trainer.fit(module, DataLoader(data, batch_size=16 // devices))
    trainer.save_checkpoint(out / "both.ckpt")
    thetas = {name: adapter.theta.detach() for name, adapter in get_adapters(module.net).items()}
    torch.save({**thetas, "head": module.net["head"].weight.detach()}, out / f"{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_train_what_one_trains(torchrun: Any, tmp_path: Path) -> None:
    torchrun(__file__, 2, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    (tmp_path / "one").mkdir()
    main(tmp_path / "one", devices=1)
    for name, value in torch.load(tmp_path / "one" / "0.pt").items():
        assert value.abs().max() > 0
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
    loaded = load_from_checkpoint(Summed, tmp_path / "both.ckpt")
    assert torch.equal(get_adapters(loaded.net)["second"].theta, first["second"])
    assert torch.equal(loaded.net["head"].weight, first["head"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
