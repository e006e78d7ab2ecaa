"""Image classification with any classifier of Transformers or timm. The module knows nothing of an adapter."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassConfusionMatrix

from gpart.errors import GPartError
from gpart.heads import names_of_head
from gpart.lightning_modules.common.activations import checkpoint_activations
from gpart.lightning_modules.common.classifier import Classifier
from gpart.lightning_modules.common.data_labels import DataLabels
from gpart.lightning_modules.common.metrics import accuracies
from gpart.lightning_modules.common.new_head import NewHead
from gpart.lightning_modules.common.optimizers import Schedule, adamw_by_steps, check_schedule
from gpart.lightning_modules.vision import figures, networks
from gpart.lightning_modules.vision.batches import check_labels, mixing_share, names_of

# With more classes, a chart for each class would hide the scores among a logger's charts. The confusion matrix shows
# them anyway.
_MOST_SCALARS = 20

Batch = dict[str, Any]
"""``pixel_values`` (batch, channels, height, width), ``labels`` (batch,), and the lists ``idx`` and ``file``."""


class ImageClassifier(Classifier):
    """A pretrained image classifier with a head for these classes, trained by AdamW on the cross-entropy.

    The head has its own learning rate and weight decay. All other parameters that require a gradient when the optimizer
    is made share ``lr`` and ``weight_decay``. So full fine-tuning, a linear probe and an adapter are trained by the
    same code.

    Validation logs ``val/loss`` (the plain cross-entropy), ``val/accuracy`` (the share of pictures that are right) and
    ``val/accuracy_per_class`` (the mean of the classes' accuracies, without classes that have no pictures). The test
    logs the same under ``test/``, and with up to 20 classes also ``test/accuracy/NAME`` for each class. A TensorBoard
    logger gets a confusion matrix and the 16 most confident mistakes after each of the two, except after the sanity
    check. With several devices, the mistakes are those of rank 0. Their pictures are scaled to their own range.

    Args:
        model: a Transformers model's name on the hub, a folder, or ``packaged:NAME``; for a timm model, ``timm:NAME``
            or ``timm:FOLDER``.
        num_labels: the number of classes, at least 2. The default is the data's, or 10 if they do not tell.
        lr: the learning rate of all parameters outside the head.
        head_lr: the learning rate of the head; the default is ``lr``.
        head: the names of the head's modules in the model; the default is :func:`gpart.heads.head_modules`.
        weight_decay: AdamW's weight decay of all parameters outside the head. As in Transformers' Trainer, biases and
            normalisation layers have none.
        head_weight_decay: the weight decay of the head; the default is ``weight_decay``.
        warmup_ratio: the fraction of the steps in which the learning rate rises from 0.
        schedule: the schedule of the learning rate after the warm-up.
        labels: the classes' names; the default is the data's, or their numbers.
        gradient_checkpointing: recompute activations in the backward pass, which takes less memory (not re-entrant).
        label_smoothing: the share of a label that is spread over all classes, in training.
        mixup: mix each picture with its neighbour in the batch, in training. The value is the alpha of the Beta
            distribution that the share of each is drawn from; 0 turns it off. A share depends only on the seed, the
            epoch and the batch's number, so that a resumed run draws the same. Source: Zhang et al., "mixup", 2018.
        channels_last: use the memory format channels-last, which is faster for convolutions on a GPU.
        allow_untrained_head: let ``test`` and ``predict`` use a head that is new and random, and that nothing has trained.

    Raises:
        GPartError: if a setting is out of its range.
    """

    default_labels = 10

    def __init__(
        self,
        model: str = "packaged:dinov2-small",
        num_labels: int | None = None,
        lr: float = 1e-2,
        head_lr: float | None = None,
        head: list[str] | str | None = None,
        weight_decay: float = 0.01,
        head_weight_decay: float | None = None,
        warmup_ratio: float = 0.05,
        schedule: Schedule = "linear",
        labels: list[str] | None = None,
        gradient_checkpointing: bool = False,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        channels_last: bool = False,
        allow_untrained_head: bool = False,
    ) -> None:
        super().__init__()
        if labels is not None and len(set(labels)) != len(labels):
            twice = sorted({name for name in labels if labels.count(name) > 1})
            raise GPartError(f"labels must differ, but {twice} stand more than once among {len(labels)}")
        if not 0 <= label_smoothing < 1:
            raise GPartError(f"label_smoothing must be from 0 to below 1, got {label_smoothing}")
        if mixup < 0:
            raise GPartError(f"mixup must be 0, which is off, or above, got {mixup}")
        check_schedule(schedule, warmup_ratio)
        self.save_hyperparameters()
        self._mistakes: list[figures.Mistake] = []
        self.settle_said("num_labels", "labels")

    def configure_model(self) -> None:
        """Loads the pretrained network, once. If the checkpoint's head does not fit, the head is new and random.

        Raises:
            GPartFileError: if the model is not there.
            GPartError: if it can't be read, or it does not support a setting.
        """
        if self.model is not None:
            return
        self.settle()
        network = networks.build(self.hparams["model"], self.hparams["num_labels"], self.hparams["labels"])
        if self.hparams["gradient_checkpointing"]:
            checkpoint_activations(network)
        if self.hparams["channels_last"]:
            network = network.to(memory_format=torch.channels_last)
        self._new_head = NewHead(network, networks.new_parameters(network))
        self.model = network

    def forward(self, pictures: Tensor) -> Tensor:
        """Returns the logits: (batch, channels, height, width) -> (batch, num_labels)."""
        if self.hparams["channels_last"]:
            pictures = pictures.to(memory_format=torch.channels_last)
        return networks.logits_of(self._network()(pictures))

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Checks the labels while they are on the CPU. On a GPU, a wrong label ends in an assertion that names nothing.

        Raises:
            GPartError: if a label is not one of the head's classes.
        """
        if "labels" in batch and not self.trainer.predicting:
            check_labels(batch["labels"], self.hparams["num_labels"], names_of(batch))
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the cross-entropy of a batch, with label smoothing and mixup if these are set."""
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
        """Measures the loss and the scores on the validation split, which selects the checkpoint."""
        self._measure("val", self.val_table, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures the loss and the scores on the test split."""
        self._measure("test", self.test_table, batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the scores of the whole validation split, and draws the figures."""
        self._finish("val", self.val_table)

    def on_test_epoch_end(self) -> None:
        """Logs the scores of the whole test split and of each class, and draws the figures."""
        of_class = self._finish("test", self.test_table)
        if len(of_class) <= _MOST_SCALARS:
            scores = {f"test/accuracy/{name}": value for name, value in of_class.items() if not value.isnan()}
            self.log_dict(scores, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Any]]:
        """Returns each picture's class and its probability, and its number and file if the batch has them."""
        columns: dict[str, list[Any]] = {name: batch[name] for name in ("idx", "file") if name in batch}
        probability, answer = self(batch["pixel_values"]).float().softmax(-1).max(-1)
        labels = self.hparams["labels"]
        columns["label"] = [labels[i] if labels else i for i in answer.tolist()]
        columns["probability"] = [round(value, 4) for value in probability.tolist()]
        return columns

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns AdamW, with groups for the head and for all other parameters, and the scheduler.

        Raises:
            GPartError: if there is no such head, or it is frozen though it has just been initialised at random.
        """
        network = self._network()
        head = names_of_head(network, self.hparams["head"])
        made = adamw_by_steps(self, network, head)
        trained = any(value.requires_grad for name in head for value in network.get_submodule(name).parameters())
        # For Transformers' models, the methods' callbacks refuse this. They can't see it in a timm model.
        if not trained and networks.timm_head_is_new(network):
            raise GPartError(
                f"{head} is frozen, though timm has just initialised it at random, for {self.hparams['num_labels']}"
                " classes: train it, with an adapter by modules_to_save"
            )
        return made

    def adapter_facts(self) -> dict[str, Any]:
        """What an adapter's file should say: the base's name, the task and the classes' names."""
        return {"base": self.hparams["model"], "task": "classification", "labels": self.hparams["labels"]}

    def build_metrics(self, labels: DataLabels) -> None:
        """Makes the tables for settled classes, and writes these into the hyperparameters.

        Raises:
            GPartError: if there are fewer than two.
        """
        if labels.num_labels < 2:
            raise GPartError(f"num_labels must be at least 2, got {labels.num_labels}")
        # All scores are computed from one table of counts, with a row for each true class.
        self.val_table = MulticlassConfusionMatrix(labels.num_labels)
        self.test_table = MulticlassConfusionMatrix(labels.num_labels)
        self.save_hyperparameters({"num_labels": labels.num_labels, "labels": labels.names})

    def _measure(self, stage: str, table: MulticlassConfusionMatrix, batch: Batch) -> None:
        labels = batch["labels"]
        logits = self(batch["pixel_values"]).float()
        self.log(f"{stage}/loss", cross_entropy(logits, labels), batch_size=len(labels), sync_dist=True)
        table.update(logits, labels)
        if self._boards():
            files = names_of(batch)
            self._mistakes = figures.worst_mistakes(self._mistakes, batch["pixel_values"], logits, labels, files)

    def _finish(self, stage: str, table: MulticlassConfusionMatrix) -> dict[str, Tensor]:
        """Logs a split's scores, draws the figures and resets the table; returns each class's accuracy by name."""
        counts = table.compute()  # summed over all devices
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
        """The TensorBoard loggers; none in the sanity check, or on a rank other than 0."""
        if self.trainer.sanity_checking or not self.trainer.is_global_zero:
            return []
        return [logger for logger in self.trainer.loggers if isinstance(logger, TensorBoardLogger)]
