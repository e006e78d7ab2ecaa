"""Run with version 0.1.0 (a673bf0): writes the files that tests/test_older_files.py reads."""

import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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
    """Trains three steps and writes the files."""
    out.mkdir(parents=True, exist_ok=True)
    SETTINGS = {"d": 11, "target_modules": ["0"], "modules_to_save": ["2"], "seed": 9, "bias": "all", "dropout": 0.25}
    torch.manual_seed(0)
    lit = Lit()
    rows = (torch.arange(64.0).view(8, 8) * 5 % 17 - 8) / 4
    trainer = Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GPartCallback(**SETTINGS, save_folder=str(out / "adapter"))],
    )
    trainer.fit(lit, DataLoader(TensorDataset(rows), batch_size=4))
    trainer.save_checkpoint(out / "run.ckpt")
    torch.save(lit.net.state_dict(), out / "state.pt")
    lit.eval()
    a = lit.net.gpart["default"].adapter
    with torch.no_grad():
        torch.save(
            {"weight": lit.net[0].weight.clone(), "bias": lit.net[0].bias.clone(), "theta": a.theta.clone()},
            out / "merged.pt",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
