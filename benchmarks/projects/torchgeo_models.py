"""torchgeo: a classification task on drawn images of its own kind of batch."""

from __future__ import annotations

import tempfile
from typing import Any

import lightning.pytorch as pl
import torch
from facts import FirstLoss, Watched, difference, report
from torchgeo.trainers import ClassificationTask

IMAGES = torch.rand(24, 4, 32, 32, generator=torch.Generator().manual_seed(0))
SETTINGS: dict[str, Any] = {"target_modules": ["conv1", "conv2"], "modules_to_save": ["fc"]}


class Tiles(torch.utils.data.Dataset[Any]):
    """In the place of EuroSAT: images of four bands."""

    def __len__(self) -> int:
        """How many images."""
        return len(IMAGES)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A sample as torchgeo's data sets give it."""
        return {"image": IMAGES[index], "label": torch.tensor(index % 3)}


def project(folder: str, *callbacks: Any, epochs: int = 2, ckpt_path: str | None = None) -> tuple[Any, ...]:
    """As the trainers' tutorial; returns the task, the trainer and the loader."""
    pl.seed_everything(0)
    task = ClassificationTask(
        model="resnet18", weights=None, in_channels=4, num_classes=3, loss="ce", lr=0.01, patience=5
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[*callbacks],
        default_root_dir=folder,
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train = torch.utils.data.DataLoader(Tiles(), batch_size=8, shuffle=True)
    test = torch.utils.data.DataLoader(Tiles(), batch_size=8)
    trainer.fit(task, train, test, ckpt_path=ckpt_path)
    return task, trainer, test


def answered(task: Any, loader: Any) -> Any:
    """As the tutorial: by a Trainer."""
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return torch.cat(pl.Trainer(**settings).predict(task, loader))


def facts() -> dict[str, Any]:
    """Plain, with the line, resumed, and loaded by ``load_from_checkpoint``."""
    with tempfile.TemporaryDirectory() as folder:
        plain = FirstLoss()
        project(folder + "/plain", plain, epochs=1)
        # The line: callbacks=[GPartCallback(...)]
        line = Watched(d=200, checkpoints="merged", **SETTINGS)
        task, trainer, loader = project(folder + "/line", line)
        expected = answered(task, loader)
        first = Watched(d=200, checkpoints="merged", **SETTINGS)
        half = project(folder + "/half", first, epochs=1)[1].checkpoint_callback.best_model_path
        again = Watched(d=200, checkpoints="merged", **SETTINGS)
        resumed = project(folder + "/resumed", again, ckpt_path=half)[0]
        loaded = ClassificationTask.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
        return {
            "model": "ClassificationTask, ResNet-18",
            "line": f"callbacks=[GPartCallback(d=200, checkpoints='merged', {SETTINGS})]",
            **line.found(plain),
            "resumed, difference": difference(answered(resumed, loader), expected),
            "own load, difference": difference(answered(loaded, loader), expected),
        }


if __name__ == "__main__":
    report("torchgeo", rows=[facts()])
