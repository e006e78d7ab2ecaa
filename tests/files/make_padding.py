"""Run with b6a45a1, of manifest format 1: writes the files of tests/serialization/test_padding_rows.py."""

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
        self.words = nn.Embedding(6, 4, padding_idx=1)
        self.out = nn.Linear(4, 2)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_((torch.arange(value.numel()) * 37 % 101 - 50).view(value.shape) / 64)

    def training_step(self, batch, _):
        return self.out(self.words(batch[0])).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.25)


def main(out: Path) -> None:
    """Trains two steps and writes the files."""
    torch.manual_seed(0)
    lit = Lit()
    rows = torch.arange(24).view(4, 6) % 6
    callback = GPartCallback(d=5, target_modules=["words"], modules_to_save=["out"], save_folder=str(out / "adapter"))
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    trainer.fit(lit, DataLoader(TensorDataset(rows), batch_size=2))
    trainer.save_checkpoint(out / "run.ckpt")
    with torch.no_grad():
        torch.save(lit.words.weight.clone(), out / "words.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
