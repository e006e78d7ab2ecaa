"""Writes the files that tests/scenarios/test_older_files.py reads of several adapters: run at the commit that added it."""

import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gpart import get_adapters
from gpart.callbacks import GPartCallback


class Lit(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
        with torch.no_grad():
            for number, value in enumerate(self.net.parameters()):
                value.copy_((torch.arange(value.numel()) * 37 % 101 - 50).view(value.shape) / 64 + number / 8)

    def training_step(self, batch, _):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.25)


def main(out: Path) -> None:
    """Trains two adapters together for three steps and writes a checkpoint, a folder each, and what they computed."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    lit = Lit()
    rows = (torch.arange(64.0).view(8, 8) * 5 % 17 - 8) / 4
    first = {"d": 11, "target_modules": ["0"], "modules_to_save": ["2"], "seed": 9, "bias": "all"}
    second = {"d": 5, "target_modules": ["0"], "seed": 3}
    trainer = Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            GPartCallback(**first, name="first", save_folder=str(out / "first")),
            GPartCallback(**second, name="second-1", save_folder=str(out / "second-1")),
        ],
    )
    trainer.fit(lit, DataLoader(TensorDataset(rows), batch_size=4))
    trainer.save_checkpoint(out / "run.ckpt")
    lit.eval()
    thetas = {name: adapter.theta.detach().clone() for name, adapter in get_adapters(lit.net).items()}
    with torch.no_grad():
        torch.save({"weight": lit.net[0].weight.clone(), "bias": lit.net[0].bias.clone(), **thetas}, out / "summed.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
