"""Image classification with any classifier of Transformers or timm. It knows nothing of the adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassConfusionMatrix

from gpart.lightning_modules.common.activations import checkpoint_activations
from gpart.lightning_modules.common.metrics import accuracies
from gpart.lightning_modules.common.optimizers import adamw_by_steps, check_schedule
from gpart.lightning_modules.vision import figures, networks

# More scalars than this would bury the scores among a logger's charts; the confusion matrix shows them anyway.
_MOST_SCALARS = 20

Batch = dict[str, Any]
"""``pixel_values`` (batch, channels, height, width), ``labels`` (batch,), and lists ``idx`` and ``file``."""


class ImageClassifier(LightningModule):
    """A pretrained image classifier with a head for these classes, trained by AdamW on the cross-entropy.

    The head has a learning rate and a weight decay of its own; everything else that requires a gradient when the
    optimizer is made shares the others. So full fine-tuning, a linear probe and an adapter all train by this same code.

    Validation logs ``val/loss`` (the plain cross-entropy), ``val/accuracy`` (the share of pictures that are right) and
    ``val/accuracy_per_class`` (the mean of the classes' accuracies, over those that have pictures); ``test`` the same
    under ``test/``, and ``test/accuracy/NAME`` for each class, up to 20 classes. A TensorBoard logger also gets a
    confusion matrix and the 16 most confident mistakes after each, but not in the sanity check; with several devices
    the mistakes are the first rank's. Their pictures are scaled to their own range, not de-normalised.

    Args:
        model: a Transformers model's name on the hub, a folder, or ``packaged:NAME``; ``timm:NAME`` or ``timm:FOLDER``
            for one of timm's.
        num_labels: number of classes, at least 2.
        lr: learning rate of all but the head.
        head_lr: learning rate of the head; default ``lr``.
        head: name of the head's module in the model; default Transformers' ``classifier``, or the one timm names.
        weight_decay: AdamW's, on all that is trained but biases and normalisation layers, as in Transformers' Trainer.
        head_weight_decay: the head's; default ``weight_decay``.
        warmup_ratio: part of the steps in which the learning rate rises from 0.
        schedule: ``"linear"``, ``"cosine"`` or ``"constant"`` after that, Transformers' names.
        labels: the classes' names; default their numbers.
        gradient_checkpointing: recompute activations in the backward pass, for less memory (not re-entrant).
        label_smoothing: the share of a label that is spread over all classes, in training.
        mixup: alpha of the Beta distribution of the shares in which each picture is mixed with its neighbour in the
            batch, in training; 0 is off. A share comes from the seed, the epoch and the batch's number alone, so that a
            resumed run draws the same. Source: Zhang et al., "mixup", 2018.
        channels_last: keep pictures and convolutions channels last, which is faster for convolutions on a GPU.

    Raises:
        ValueError: if a setting is out of its range.
    """

    def __init__(
        self,
        model: str = "packaged:dinov2-small",
        num_labels: int = 10,
        lr: float = 1e-2,
        head_lr: float | None = None,
        head: str | None = None,
        weight_decay: float = 0.01,
        head_weight_decay: float | None = None,
        warmup_ratio: float = 0.05,
        schedule: str = "linear",
        labels: list[str] | None = None,
        gradient_checkpointing: bool = False,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if num_labels < 2:
            raise ValueError(f"num_labels must be at least 2, got {num_labels}")
        if labels is not None and len(labels) != num_labels:
            raise ValueError(f"labels names {len(labels)} classes, num_labels is {num_labels}: {labels}")
        if labels is not None and len(set(labels)) != num_labels:
            twice = sorted({name for name in labels if labels.count(name) > 1})
            raise ValueError(f"labels must differ, but {twice} stand more than once among {num_labels}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be from 0 to below 1, got {label_smoothing}")
        if mixup < 0:
            raise ValueError(f"mixup must be 0, which is off, or above, got {mixup}")
        check_schedule(schedule, warmup_ratio)
        self.save_hyperparameters()
        self.model: nn.Module | None = None
        # All scores come from one table of counts, rows true and columns given.
        self.val_table = MulticlassConfusionMatrix(num_labels)
        self.test_table = MulticlassConfusionMatrix(num_labels)
        self._mistakes: list[figures.Mistake] = []

    def configure_model(self) -> None:
        """Loads the pretrained network, once; its head is new, and random, where the checkpoint's does not fit."""
        if self.model is not None:
            return
        network = networks.build(self.hparams["model"], self.hparams["num_labels"], self.hparams["labels"])
        if self.hparams["gradient_checkpointing"]:
            checkpoint_activations(network)
        if self.hparams["channels_last"]:
            network = network.to(memory_format=torch.channels_last)
        self.model = network

    def forward(self, pictures: Tensor) -> Tensor:
        """The logits, (batch, channels, height, width) -> (batch, num_labels)."""
        if self.hparams["channels_last"]:
            pictures = pictures.to(memory_format=torch.channels_last)
        return networks.logits_of(self._network()(pictures))

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Checks the labels while they are on the CPU: on a GPU a wrong one ends in an assertion without a name.

        Raises:
            ValueError: if a label is no class of the head's.
        """
        if "labels" in batch and not self.trainer.predicting:
            check_labels(batch["labels"], self.hparams["num_labels"], _names(batch))
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The cross-entropy of a batch, its labels smoothed and its pictures mixed if that was asked for."""
        pictures, labels = batch["pixel_values"], batch["labels"]
        smoothing, alpha = self.hparams["label_smoothing"], self.hparams["mixup"]
        if alpha:
            share = mixing_share(alpha, torch.initial_seed(), self.current_epoch, batch_idx, self.global_rank)
            logits = self(share * pictures + (1 - share) * pictures.roll(1, 0)).float()
            own = cross_entropy(logits, labels, label_smoothing=smoothing)
            loss = share * own + (1 - share) * cross_entropy(logits, labels.roll(1), label_smoothing=smoothing)
        else:
            loss = cross_entropy(self(pictures).float(), labels, label_smoothing=smoothing)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and scores on the part that chooses the checkpoint."""
        self._measure("val", self.val_table, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and scores on the part that scores."""
        self._measure("test", self.test_table, batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the scores of the whole part, and draws."""
        self._finish("val", self.val_table)

    def on_test_epoch_end(self) -> None:
        """Logs the scores of the whole part and of each class, and draws."""
        of_class = self._finish("test", self.test_table)
        if len(of_class) <= _MOST_SCALARS:
            scores = {f"test/accuracy/{name}": value for name, value in of_class.items() if not value.isnan()}
            self.log_dict(scores, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Any]]:
        """Each picture's class and its probability, with its number and file where the batch has them."""
        columns: dict[str, list[Any]] = {name: batch[name] for name in ("idx", "file") if name in batch}
        probability, answer = self(batch["pixel_values"]).float().softmax(-1).max(-1)
        labels = self.hparams["labels"]
        columns["label"] = [labels[i] if labels else i for i in answer.tolist()]
        columns["probability"] = [round(value, 4) for value in probability.tolist()]
        return columns

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with groups for the head and for the rest; the schedule goes by steps.

        Raises:
            ValueError: if there is no such head, or it has just been initialised at random and would stay so.
        """
        network = self._network()
        asked = self.hparams["head"]
        head = networks.head_name(network) if asked is None else asked
        made = adamw_by_steps(self, network, head)
        trained = any(value.requires_grad for value in network.get_submodule(head).parameters())
        # For Transformers' models the methods' callbacks refuse this; timm's bear no mark that they could read.
        if not trained and networks.timm_head_is_new(network):
            raise ValueError(
                f"{head!r} is frozen, though timm has just initialised it at random, for {self.hparams['num_labels']}"
                " classes: train it, with an adapter by modules_to_save"
            )
        return made

    def _network(self) -> nn.Module:
        if self.model is None:
            raise ValueError("the network is not built yet: call configure_model() first")
        return self.model

    def _measure(self, stage: str, table: MulticlassConfusionMatrix, batch: Batch) -> None:
        labels = batch["labels"]
        logits = self(batch["pixel_values"]).float()
        self.log(f"{stage}/loss", cross_entropy(logits, labels), batch_size=len(labels), sync_dist=True)
        table.update(logits, labels)
        if self._boards():
            files = _names(batch)
            self._mistakes = figures.worst_mistakes(self._mistakes, batch["pixel_values"], logits, labels, files)

    def _finish(self, stage: str, table: MulticlassConfusionMatrix) -> dict[str, Tensor]:
        """Logs the part's scores, draws, and begins anew; returns the classes' accuracies by name."""
        counts = table.compute()  # over all devices
        table.reset()
        accuracy, of_class = accuracies(counts)
        scores = {f"{stage}/accuracy": accuracy, f"{stage}/accuracy_per_class": of_class.nanmean()}
        self.log_dict(scores, prog_bar=True, sync_dist=True)
        names = self.hparams["labels"] or [str(i) for i in range(len(counts))]
        if boards := self._boards():
            pictures = {"confusion": figures.confusion_figure(counts, names)}
            if self._mistakes:
                pictures["mistakes"] = figures.mistakes_figure(self._mistakes, names)
            for name, figure in pictures.items():
                pixels = figures.rendered(figure)
                for board in boards:
                    board.experiment.add_image(f"{stage}/{name}", pixels, self.global_step, dataformats="HWC")
        self._mistakes = []
        return dict(zip(names, of_class, strict=True))

    def _boards(self) -> list[TensorBoardLogger]:
        """Where pictures go: nowhere in the sanity check, on another rank, or with other loggers."""
        if self.trainer.sanity_checking or not self.trainer.is_global_zero:
            return []
        return [logger for logger in self.trainer.loggers if isinstance(logger, TensorBoardLogger)]


def check_labels(labels: Tensor, num_labels: int, files: list[str]) -> None:
    """Checks that every label is a class.

    Raises:
        ValueError: with the first label that is none, its picture, and the number of classes.
    """
    outside = ((labels < 0) | (labels >= num_labels)).nonzero().flatten().tolist()
    if outside:
        first = outside[0]
        raise ValueError(
            f"{files[first]} has label {int(labels[first])}, but num_labels={num_labels}: labels are 0 to"
            f" {num_labels - 1}; {len(outside)} of this batch's {len(labels)} are outside"
        )


def mixing_share(alpha: float, *seed: int) -> float:
    """A share from Beta(alpha, alpha) that depends on the numbers alone, and not on what was drawn before."""
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _names(batch: Batch) -> list[str]:
    """What to call a batch's pictures: their files, else their numbers, else their places in the batch."""
    if "file" in batch:
        return list(batch["file"])
    return [f"picture {i}" for i in batch.get("idx", range(len(batch["pixel_values"])))]
