"""Sequence classification and regression with any Hugging Face encoder. It knows nothing of the adapter."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol, cast, runtime_checkable

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import AutoModelForSequenceClassification

from gpart.assets.fetching import loading
from gpart.errors import GPartError
from gpart.heads import names_of_head
from gpart.lightning_modules.common.activations import checkpoint_activations
from gpart.lightning_modules.common.classifier import Classifier
from gpart.lightning_modules.common.data_labels import DataLabels, Problem
from gpart.lightning_modules.common.metrics import MetricName, metric_collection, metric_names
from gpart.lightning_modules.common.new_head import NewHead
from gpart.lightning_modules.common.optimizers import Schedule, adamw_by_steps, check_schedule
from gpart.lightning_modules.common.row_columns import beside

Batch = dict[str, Any]

_LIKELY = 0.5  # a text has the classes above this probability


@runtime_checkable
class LabelMean(Protocol):
    """A DataModule that knows the mean of its training labels."""

    def label_mean(self) -> float:
        """The mean of the training labels, once ``setup("fit")`` has run."""


def start_bias(model: nn.Module, new: Collection[str], mean: float) -> None:
    """Sets the bias of a regression's new head to the mean of the labels.

    Args:
        model: the network.
        new: the names of the parameters that the checkpoint did not have. A head that it had stays as it is.
        mean: the mean.
    """
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in new and name.split(".")[-1] == "bias" and value.shape == (1,):
                value.fill_(mean)


class SequenceClassifier(Classifier):
    """A pretrained encoder with a classification or regression head, trained by AdamW.

    The head has its own learning rate and weight decay. All other parameters that require a gradient when the optimizer
    is made share ``lr`` and ``weight_decay``. So full fine-tuning, a linear probe and an adapter are trained by the
    same code. Validation logs ``val/loss``, and ``val/NAME`` for each metric. The test logs ``test/NAME`` for each
    metric.

    ``num_labels``, ``labels``, ``problem_type`` and ``metrics`` are the data's where they are left out: a DataModule tells
    them (:class:`~gpart.lightning_modules.common.data_labels.TellsLabels`) once it is set up. Then they stand in the
    hyperparameters, so that a checkpoint needs no data to be loaded.

    Args:
        model: a model's name on the hub, a folder, or ``packaged:NAME``.
        num_labels: the number of classes; 1 is a regression with the mean squared error. The default is the data's, or
            2 if they do not tell.
        metrics: the metrics: accuracy, f1 and matthews are for classes, pearson and spearman for a regression. The
            default is accuracy, f1 and accuracy for several classes a text, or both metrics for a regression.
        lr: the learning rate of all parameters outside the head.
        head_lr: the learning rate of the head; the default is ``lr``.
        head: the names of the head's modules in the model; the default is :func:`gpart.heads.head_modules`.
        weight_decay: AdamW's weight decay of all parameters outside the head. As in Transformers' Trainer, biases and
            normalisation layers have none.
        head_weight_decay: the weight decay of the head; the default is ``weight_decay``.
        warmup_ratio: the fraction of the steps in which the learning rate rises from 0.
        schedule: the schedule of the learning rate after the warm-up.
        labels: the classes' names, for predictions; the default is the data's, or their numbers.
        problem_type: the task, in Transformers' words; the default is the data's, or what ``num_labels`` means. With
            ``multi_label_classification``, a text has any number of classes, and the loss is the binary cross-entropy.
        head_bias_at_mean: start the bias of a regression's new head at the mean of the training labels, which the
            DataModule's ``label_mean()`` tells (:class:`LabelMean`); without one, the bias starts where Transformers
            puts it, at 0. From 0, the method's own parameters would first have to carry the mean.
        gradient_checkpointing: recompute activations in the backward pass, which takes less memory (not re-entrant).
        allow_untrained_head: let ``test`` and ``predict`` use a head that is new and random, and that nothing has trained.

    Raises:
        GPartError: if a setting is out of its range or the metrics do not fit the number of labels.
    """

    default_labels = 2

    def __init__(
        self,
        model: str = "packaged:minilm",
        num_labels: int | None = None,
        metrics: list[MetricName] | None = None,
        lr: float = 5e-3,
        head_lr: float | None = None,
        head: list[str] | str | None = None,
        weight_decay: float = 0.01,
        head_weight_decay: float | None = None,
        warmup_ratio: float = 0.06,
        schedule: Schedule = "linear",
        labels: list[str] | None = None,
        problem_type: Problem | None = None,
        head_bias_at_mean: bool = True,
        gradient_checkpointing: bool = False,
        allow_untrained_head: bool = False,
    ) -> None:
        super().__init__()
        check_schedule(schedule, warmup_ratio)
        self.save_hyperparameters()
        self.settle_said("num_labels", "labels", "problem_type", "metrics")

    def configure_model(self) -> None:
        """Loads the pretrained network, once. If the checkpoint has no head, the head is new and random.

        What a checkpoint or an adapter holds is loaded after this, so that it overrides the bias of a new head.

        Raises:
            GPartFileError: if the model is not there.
            GPartError: if it can't be read, or its weights do not fit ``num_labels``.
        """
        if self.model is not None:
            return
        self.settle()
        place, num_labels, names = (self.hparams[name] for name in ("model", "num_labels", "labels"))
        named = (
            {}
            if names is None
            else {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
        )
        with loading(place) as name:
            try:
                model, told = AutoModelForSequenceClassification.from_pretrained(
                    name,
                    num_labels=num_labels,
                    problem_type=self.hparams["problem_type"],
                    **named,
                    output_loading_info=True,
                )
            except RuntimeError as error:
                if "ignore_mismatched_sizes" not in str(error):
                    raise
                raise GPartError(f"num_labels={num_labels} does not fit its weights: {error}") from error
        mean = self._label_mean()
        if mean is not None:
            start_bias(model, told["missing_keys"], mean)
        if self.hparams["gradient_checkpointing"]:
            checkpoint_activations(model)
        self._new_head = NewHead(model, told["missing_keys"])
        # from_pretrained returns it in eval mode. Without train(), dropout would be off for some methods only.
        self.model = model.train()

    def forward(self, batch: Batch) -> Any:
        """The network's output: ``logits`` of shape (batch, num_labels), and ``loss`` if the batch has labels."""
        tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor) and key != "idx"}
        if "labels" in tensors and self.hparams["problem_type"] != "single_label_classification":
            tensors["labels"] = tensors["labels"].float()  # whole numbers are numbers too
        return self._network()(**tensors)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the cross-entropy of a batch, or the mean squared error."""
        loss = cast("Tensor", self(batch).loss)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the loss and the metrics on the validation split, which selects the checkpoint."""
        output = self(batch)
        self.log("val/loss", output.loss, batch_size=len(batch["labels"]), sync_dist=True)
        self._measure(self.val_metrics, output.logits, batch["labels"])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the metrics on the test split, which gives the score."""
        self._measure(self.test_metrics, self(batch).logits, batch["labels"])

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Any]]:
        """Returns each example's label and probability, or its score, beside what the batch says of the example.

        With several classes a text, these are the names of the classes above 0.5, and each class's probability.
        """
        logits, problem = self(batch).logits.float(), self.hparams["problem_type"]
        if problem == "regression":
            return beside(batch, {"score": [round(value, 4) for value in logits.squeeze(-1).tolist()]})
        names = self.hparams["labels"] or range(self.hparams["num_labels"])
        if problem == "multi_label_classification":
            each = [[round(value, 4) for value in row] for row in logits.sigmoid().tolist()]
            chosen = [[names[at] for at, value in enumerate(row) if value > _LIKELY] for row in each]
            return beside(
                batch,
                {"label": chosen, "probability": [dict(zip(map(str, names), row, strict=True)) for row in each]},
            )
        probability, label = logits.softmax(-1).max(-1)
        rounded = [round(value, 4) for value in probability.tolist()]
        return beside(batch, {"label": [names[i] for i in label.tolist()], "probability": rounded})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns AdamW, with groups for the head and for all other parameters, and the scheduler."""
        return adamw_by_steps(self, self._network(), names_of_head(self._network(), self.hparams["head"]))

    def adapter_facts(self) -> dict[str, Any]:
        """What an adapter's file should say: the base's name and the classes' names."""
        return {"base": self.hparams["model"], "labels": self.hparams["labels"]}

    def build_metrics(self, labels: DataLabels) -> None:
        """Makes the metrics for settled labels, and writes both into the hyperparameters.

        Raises:
            GPartError: if a metric does not fit the task.
        """
        number, problem = labels.num_labels, labels.problem
        metrics = metric_names(self._said["metrics"], number, problem)
        self.val_metrics = metric_collection(metrics, number, "val/", problem)
        self.test_metrics = metric_collection(metrics, number, "test/", problem)
        settled = {"num_labels": number, "labels": labels.names, "problem_type": problem, "metrics": metrics}
        self.save_hyperparameters(settled)

    def _label_mean(self) -> float | None:
        """The mean of the training labels, if this is the fit of a regression and its DataModule knows it."""
        trainer = self._trainer  # the property of this name raises an error without a trainer
        wanted = self.hparams["head_bias_at_mean"] and self.hparams["num_labels"] == 1
        if not wanted or trainer is None or trainer.state.fn != "fit":
            return None
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by its data connector
        return data.label_mean() if isinstance(data, LabelMean) else None

    def _measure(self, metrics: MetricCollection, logits: Tensor, labels: Tensor) -> None:
        # In half precision, different scores could become equal, and Spearman's ranks depend on ties.
        labels = labels.float() if self.hparams["problem_type"] == "regression" else labels
        metrics.update(logits.float().squeeze(-1), labels)
        self.log_dict(metrics, prog_bar=True, batch_size=len(labels))
