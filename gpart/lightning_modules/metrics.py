"""GLUE's metrics from torchmetrics, as Hugging Face's ``evaluate`` defines them (metrics/glue/glue.py)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchmetrics import Metric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
)


class _PositiveF1(BinaryF1Score):
    """F1 of class 1, from two logits an example."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.argmax(-1), target)


def _f1(classes: int) -> Metric:
    return _PositiveF1() if classes == 2 else MulticlassF1Score(classes, average="macro")


_CLASSES: dict[str, Callable[[int], Metric]] = {
    "accuracy": lambda classes: MulticlassAccuracy(classes, average="micro"),
    "f1": _f1,
    "matthews": MulticlassMatthewsCorrCoef,
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
