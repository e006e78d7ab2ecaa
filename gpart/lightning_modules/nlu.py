"""Sequence classification with any Hugging Face encoder. It knows nothing of the adapter."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoModelForSequenceClassification, get_scheduler

from gpart.packaged import resolve

Batch = dict[str, Tensor]


class SequenceClassifier(LightningModule):
    """A pretrained encoder with a classification head, trained by AdamW.

    The head has a learning rate of its own; everything else that requires a gradient when the optimizer is made shares
    the other. So full fine-tuning, a linear probe and an adapter all train by this same code.

    Args:
        model: a model's name on the hub, a folder, or ``packaged:NAME``.
        num_labels: number of classes.
        lr: learning rate of all but the head.
        head_lr: learning rate of the head; default ``lr``.
        head: name of the head's module in the model.
        weight_decay: AdamW's, on all that is trained.
        warmup_ratio: part of the steps in which the learning rate rises from 0.
        schedule: ``"linear"``, ``"cosine"`` or ``"constant"`` after that, Transformers' names.
        labels: the classes' names, for predictions; default their numbers.
    """

    def __init__(
        self,
        model: str = "packaged:minilm",
        num_labels: int = 2,
        lr: float = 5e-3,
        head_lr: float | None = None,
        head: str = "classifier",
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.06,
        schedule: str = "linear",
        labels: list[str] | None = None,
    ) -> None:
        super().__init__()
        if labels is not None and len(labels) != num_labels:
            raise ValueError(f"labels names {len(labels)} classes, num_labels is {num_labels}: {labels}")
        if schedule not in ("linear", "cosine", "constant"):
            raise ValueError(f"schedule must be 'linear', 'cosine' or 'constant', got {schedule!r}")
        if not 0 <= warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio must be from 0 to 1, got {warmup_ratio}")
        self.save_hyperparameters()
        self.model: nn.Module | None = None
        self.val_accuracy = MulticlassAccuracy(num_labels, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_labels, average="micro")

    def configure_model(self) -> None:
        """Loads the pretrained network, once; its head is new, and random, where the checkpoint has none."""
        if self.model is not None:
            return
        self.model = AutoModelForSequenceClassification.from_pretrained(
            resolve(self.hparams["model"]), num_labels=self.hparams["num_labels"]
        )
        # from_pretrained returns it in eval mode: without this, dropout would be off for some methods and not others.
        self.model.train()

    def forward(self, batch: Batch) -> Any:
        """The network's output for a batch; ``logits`` has shape (batch, num_labels), ``loss`` is there with labels."""
        if self.model is None:
            raise ValueError("the network is not built yet: call configure_model() first")
        return self.model(**{key: value for key, value in batch.items() if isinstance(value, Tensor)})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The cross-entropy of a batch."""
        loss = cast("Tensor", self(batch).loss)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy on the part that chooses the checkpoint."""
        output = self(batch)
        self.val_accuracy(output.logits, batch["labels"])
        self.log("val/loss", output.loss, batch_size=len(batch["labels"]), sync_dist=True)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Accuracy on the part that scores."""
        self.test_accuracy(self(batch).logits, batch["labels"])
        self.log("test/accuracy", self.test_accuracy)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, list[Any]]:
        """Label and probability of each example, with its text where the batch has it."""
        probability, label = self(batch).logits.softmax(-1).max(-1)
        labels = self.hparams["labels"]
        columns: dict[str, list[Any]] = {"text": batch["text"]} if "text" in batch else {}
        columns["label"] = [labels[i] if labels else i for i in label.tolist()]
        columns["probability"] = [round(value, 4) for value in probability.tolist()]
        return columns

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with a group for the head and one for the rest; the schedule goes by steps."""
        if self.model is None:
            raise ValueError("the network is not built yet: call configure_model() first")
        head = {id(value) for value in self.model.get_submodule(self.hparams["head"]).parameters()}
        trained = [value for value in self.parameters() if value.requires_grad]
        lr, head_lr = self.hparams["lr"], self.hparams["head_lr"]
        groups = [
            {"params": [value for value in trained if id(value) in head], "lr": lr if head_lr is None else head_lr},
            {"params": [value for value in trained if id(value) not in head], "lr": lr},
        ]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], weight_decay=self.hparams["weight_decay"]
        )
        total = int(self.trainer.estimated_stepping_batches)
        name = self.hparams["schedule"]
        schedule = get_scheduler(
            "constant_with_warmup" if name == "constant" else name,
            optimizer,
            num_warmup_steps=round(self.hparams["warmup_ratio"] * total),
            num_training_steps=total,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
