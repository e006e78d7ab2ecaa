"""Sequence classification and regression with any Hugging Face encoder. It knows nothing of the adapter."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import AutoModelForSequenceClassification

from gpart.assets.fetching import loading
from gpart.lightning_modules.common.activations import checkpoint_activations
from gpart.lightning_modules.common.metrics import metric_collection
from gpart.lightning_modules.common.optimizers import adamw_by_steps, check_schedule

Batch = dict[str, Any]


class SequenceClassifier(LightningModule):
    """A pretrained encoder with a classification or regression head, trained by AdamW.

    The head has a learning rate and a weight decay of its own; everything else that requires a gradient when the
    optimizer is made shares the others. So full fine-tuning, a linear probe and an adapter all train by this same code.
    Validation logs ``val/loss`` and ``val/NAME`` for each metric, ``test`` the same under ``test/``.

    Args:
        model: a model's name on the hub, a folder, or ``packaged:NAME``.
        num_labels: number of classes; 1 is a regression by mean squared error.
        metrics: of accuracy, f1, matthews (classes), pearson, spearman (regression); default accuracy, or both of
            the regression's.
        lr: learning rate of all but the head.
        head_lr: learning rate of the head; default ``lr``.
        head: name of the head's module in the model.
        weight_decay: AdamW's, on all that is trained but biases and normalisation layers, as in Transformers' Trainer.
        head_weight_decay: the head's; default ``weight_decay``.
        warmup_ratio: part of the steps in which the learning rate rises from 0.
        schedule: ``"linear"``, ``"cosine"`` or ``"constant"`` after that, Transformers' names.
        labels: the classes' names, for predictions; default their numbers.
        gradient_checkpointing: recompute activations in the backward pass, for less memory (not re-entrant).

    Raises:
        ValueError: if a setting is out of its range or the metrics do not fit the number of labels.
    """

    def __init__(
        self,
        model: str = "packaged:minilm",
        num_labels: int = 2,
        metrics: list[str] | None = None,
        lr: float = 5e-3,
        head_lr: float | None = None,
        head: str = "classifier",
        weight_decay: float = 0.01,
        head_weight_decay: float | None = None,
        warmup_ratio: float = 0.06,
        schedule: str = "linear",
        labels: list[str] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if labels is not None and len(labels) != num_labels:
            raise ValueError(f"labels names {len(labels)} classes, num_labels is {num_labels}: {labels}")
        check_schedule(schedule, warmup_ratio)
        self.save_hyperparameters()
        self.model: nn.Module | None = None
        self.val_metrics = metric_collection(metrics, num_labels, "val/")
        self.test_metrics = metric_collection(metrics, num_labels, "test/")

    def configure_model(self) -> None:
        """Loads the pretrained network, once; its head is new, and random, where the checkpoint has none."""
        if self.model is not None:
            return
        with loading(self.hparams["model"]) as name:
            model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=self.hparams["num_labels"])
        if self.hparams["gradient_checkpointing"]:
            checkpoint_activations(model)
        # from_pretrained returns it in eval mode: without this, dropout would be off for some methods and not others.
        self.model = model.train()

    def forward(self, batch: Batch) -> Any:
        """The network's output for a batch; ``logits`` has shape (batch, num_labels), ``loss`` is there with labels."""
        return self._network()(**{key: value for key, value in batch.items() if isinstance(value, Tensor)})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The cross-entropy of a batch, or the mean squared error."""
        loss = cast("Tensor", self(batch).loss)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and metrics on the part that chooses the checkpoint."""
        output = self(batch)
        self.log("val/loss", output.loss, batch_size=len(batch["labels"]), sync_dist=True)
        self._measure(self.val_metrics, output.logits, batch["labels"])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The metrics on the part that scores."""
        self._measure(self.test_metrics, self(batch).logits, batch["labels"])

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Any]]:
        """Each example's label and its probability, or its score, with its id and text where the batch has them."""
        logits = self(batch).logits.float()
        columns: dict[str, list[Any]] = {name: batch[name] for name in ("idx", "text") if name in batch}
        if self.hparams["num_labels"] == 1:
            return {**columns, "score": [round(value, 4) for value in logits.squeeze(-1).tolist()]}
        probability, label = logits.softmax(-1).max(-1)
        labels = self.hparams["labels"]
        columns["label"] = [labels[i] if labels else i for i in label.tolist()]
        columns["probability"] = [round(value, 4) for value in probability.tolist()]
        return columns

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with groups for the head and for the rest; the schedule goes by steps."""
        return adamw_by_steps(self, self._network(), self.hparams["head"])

    def _network(self) -> nn.Module:
        if self.model is None:
            raise ValueError("the network is not built yet: call configure_model() first")
        return self.model

    def _measure(self, metrics: MetricCollection, logits: Tensor, labels: Tensor) -> None:
        # Half-precision predictions would tie, and Spearman's ranks depend on ties.
        metrics.update(logits.float().squeeze(-1), labels)
        self.log_dict(metrics, prog_bar=True, batch_size=len(labels))
