"""GLUE's metrics as Hugging Face's ``evaluate`` defines them (metrics/glue/glue.py), and accuracies of a confusion matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)


class _PositiveF1(BinaryF1Score):
    """F1 of class 1, from two logits an example."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.argmax(-1), target)


class _Matthews(MulticlassConfusionMatrix):
    """The Matthews correlation of C classes, from the confusion matrix; 0 where all answers, or all labels, are one.

    torchmetrics' own (1.9) gives a two-class constant answer a value other than 0, such as 0.098: scikit-learn gives 0,
    and a checkpoint would be chosen by it. Source of the formula: J. Gorodkin, "Comparing two K-category assignments by
    a K-category correlation coefficient", 2004.
    """

    def compute(self) -> Tensor:
        table = super().compute().double()  # rows: labels, columns: answers
        labels, answers, count = table.sum(1), table.sum(0), table.sum()
        covariance = table.trace() * count - labels @ answers
        spread = (count**2 - labels @ labels) * (count**2 - answers @ answers)
        return (covariance / spread.sqrt() if spread > 0 else torch.zeros_like(count)).float()


def _f1(classes: int) -> Metric:
    return _PositiveF1() if classes == 2 else MulticlassF1Score(classes, average="macro")


_CLASSES: dict[str, Callable[[int], Metric]] = {
    "accuracy": lambda classes: MulticlassAccuracy(classes, average="micro"),
    "f1": _f1,
    "matthews": _Matthews,
}
_REGRESSION: dict[str, Callable[[], Metric]] = {"pearson": PearsonCorrCoef, "spearman": SpearmanCorrCoef}


def metric_collection(names: list[str] | None, num_labels: int, prefix: str) -> MetricCollection:
    """The metrics by name; their results are ``prefix + name``.

    Accuracy is the share of right labels; ``f1`` that of class 1 where there are two classes, else the classes' mean;
    ``matthews`` the Matthews correlation, 0 where it is undefined; ``pearson`` and ``spearman`` (ties share the mean
    rank) are correlations of scores.

    Args:
        names: default accuracy, for one label pearson and spearman.
        num_labels: classes, or 1 for a regression.
        prefix: such as ``"val/"``.

    Raises:
        ValueError: if a metric is unknown or does not fit the number of labels.

    Example:
        >>> import torch
        >>> metrics = metric_collection(["accuracy", "f1"], 2, "val/")
        >>> metrics.update(torch.tensor([[0.1, 0.9], [0.2, 0.8]]), torch.tensor([1, 0]))
        >>> {name: round(value.item(), 3) for name, value in metrics.compute().items()}
        {'val/accuracy': 0.5, 'val/f1': 0.667}
    """
    known = _REGRESSION if num_labels == 1 else _CLASSES
    names = list(_REGRESSION if num_labels == 1 else ["accuracy"]) if names is None else names
    if not names or set(names) - set(known):
        raise ValueError(f"metrics for num_labels={num_labels} are {list(known)}, got {names}")
    chosen = {name: _REGRESSION[name]() if num_labels == 1 else _CLASSES[name](num_labels) for name in names}
    # No compute groups: they would let one metric's state stand for another's, and these are few and cheap.
    return MetricCollection(dict(chosen), prefix=prefix, compute_groups=False)


def accuracies(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The share of all that is right, and each class's, from a confusion matrix with a row for each true class.

    A class without pictures has no accuracy: NaN.

    Example:
        >>> import torch
        >>> accuracies(torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
        (tensor(0.8333), tensor([0.7500, 1.0000,    nan]))
    """
    right = counts.diagonal().float()
    return right.sum() / counts.sum(), right / counts.sum(1)
