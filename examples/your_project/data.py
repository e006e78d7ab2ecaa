"""The project's DataModule."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule
from recordings import read
from torch.utils.data import DataLoader


class Recordings(LightningDataModule):
    """One machine's recordings.

    Args:
        folder: where they are.
        machine: which one.
        batch_size: for training.
    """

    def __init__(self, folder: str, machine: str, batch_size: int = 30) -> None:
        super().__init__()
        self.folder, self.machine, self.batch_size = folder, machine, batch_size

    def train_dataloader(self) -> DataLoader:
        """Shuffled."""
        return self._loader("train", shuffle=True)

    def test_dataloader(self) -> DataLoader:
        """In the order of the files."""
        return self._loader("test", shuffle=False)

    def _loader(self, split: str, shuffle: bool) -> DataLoader:
        rows = list(zip(*read(self.folder, self.machine, split), strict=True))
        return DataLoader(rows, self.batch_size, shuffle=shuffle)
