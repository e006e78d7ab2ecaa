"""A run's validation loss as a function of its trained vector, with its Hessian's products.

Invariant: the loss is what the module's own ``validation_step`` logs, averaged over the batches as Lightning averages it,
in eval mode: at the trained point it is what ``gpart validate`` prints. It depends on the vector that was written last and
on nothing else, so that points can be evaluated in any order and in any process.

The Hessian's product with a vector v, H·v = d/dtheta (dL/dtheta · v), is found by differentiating the gradient again: every
method's graph allows it, GPart's own node too (:mod:`gpart.ops.autograd`: expand and reduce are each other's derivative).
Of torch's attention kernels only the plain one does.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchmetrics import MeanMetric, Metric

from gpart.errors import GPartError
from gpart.studies.finished_run import LoadedRun, quiet
from gpart.studies.trained_vector import TrainedVector

Logged = dict[str, tuple[Any, int | None]]
"""By name what a step logs, and its batch size where it says so."""


@dataclass(frozen=True)
class ValidationLoss:
    """The loss of a fixed set of batches.

    Attributes:
        module: the LightningModule, in eval mode.
        vector: what is varied.
        batches: the validation batches, on the module's device.
        rows: how many rows they hold.
        monitored: names of metrics that the run watched, which tell one loss from another.
    """

    module: LightningModule
    vector: TrainedVector
    batches: list[Any]
    rows: int
    monitored: frozenset[str] = frozenset()

    def at(self, vector: Tensor) -> float:
        """The loss with these numbers in the place of the trained ones; not finite where it overflows.

        Args:
            vector: shape (d,).
        """
        self.vector.write(vector)
        total = weights = 0.0
        with torch.no_grad():
            for index, batch in enumerate(self.batches):
                loss, weight = self._of_batch(batch, index)
                total, weights = total + float(loss) * weight, weights + weight
        return total / weights

    def hessian_product(self, direction: Tensor) -> Tensor:
        """H·v at the vector that was written last, shape (d,), in float32 or wider.

        Args:
            direction: v, shape (d,).

        Raises:
            GPartError: if the module logs a loss without its graph, such as a float.
        """
        parameters = list(self.vector.parameters.values())
        total, weights = torch.zeros_like(direction), 0.0
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            for index, batch in enumerate(self.batches):
                loss, weight = self._of_batch(batch, index)
                if not loss.requires_grad:
                    raise GPartError(
                        f"the loss that {type(self.module).__name__} logs has no graph, as a number or a detached tensor"
                        " has none, so there is no Hessian of it: log the tensor itself, or leave it out by --steps 0"
                    )
                first = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
                slope = torch.cat([value.reshape(-1) for value in first]) @ direction
                second = torch.autograd.grad(slope, parameters, materialize_grads=True)
                total += weight * torch.cat([value.reshape(-1) for value in second])
                weights += weight
        return total / weights

    def digest(self) -> str:
        """A hash of the batches' tensors: two runs are compared fairly only where it is the same."""
        content = hashlib.sha256()
        for batch in self.batches:
            for tensor in _tensors(batch):
                content.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return content.hexdigest()[:16]

    def _of_batch(self, batch: Any, index: int) -> tuple[Tensor, float]:
        with _logging(self.module) as logged, _metrics_of_a_batch(self.module):
            self.module.validation_step(batch, index)
            name = _loss_name(logged, self.module, self.monitored)
            value, size = logged[name]
            if isinstance(value, MeanMetric):  # a mean with weights of its own, such as tokens
                return value.mean_value / value.weight, float(value.weight)
        if isinstance(value, float):
            value = torch.tensor(value, dtype=torch.float64)
        if not isinstance(value, Tensor):
            raise GPartError(
                f"{type(self.module).__name__} logs {name!r} as a {type(value).__name__}, expected a tensor or a float"
            )
        return value, float(size if size is not None else _rows(batch))


def validation_loss(run: LoadedRun, rows: int | None = None) -> ValidationLoss:
    """The loss of a run's validation set, or of its first rows.

    Args:
        run: the loaded run.
        rows: how many rows at least, rounded up to whole batches; None for all. The first of the validation loader's, if
            there are several.

    Raises:
        GPartError: if there are no rows.
    """
    batches, count, module = [], 0, run.module
    with quiet():
        loaders = run.data.val_dataloader()
        for batch in loaders[0] if isinstance(loaders, (list, tuple)) else loaders:
            if rows is not None and count >= rows:
                break
            count += _rows(batch)
            batches.append(module._apply_batch_transfer_handler(batch, module.device, 0))
    if not batches:
        raise GPartError(f"{type(run.data).__name__} gives no validation rows (rows={rows})")
    return ValidationLoss(module, run.vector, batches, count, run.monitored)


def _rows(batch: Any) -> int:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Trying to infer the `batch_size`")  # as Lightning's own log does
        return extract_batch_size(batch)


def _loss_name(logged: Logged, module: LightningModule, monitored: frozenset[str]) -> str:
    """The one thing logged whose name ends in "loss"; of several ``val/loss`` or ``val_loss``, else the one monitored.

    Raises:
        GPartError: if there is none, or it is not clear which one is meant.
    """
    names = [name for name in logged if name.endswith("loss")]
    watched = [name for name in names if name in monitored]
    for meant in (names, [name for name in names if name in ("val/loss", "val_loss")], watched):
        if len(meant) == 1:
            return meant[0]
    raise GPartError(
        f"{type(module).__name__}.validation_step logs {sorted(logged)}: expected one name that ends in 'loss', or of"
        f" {len(names)} such names one that is val/loss or val_loss, or that the run's ModelCheckpoint monitors: call it so"
    )


@contextmanager
def _logging(module: LightningModule) -> Iterator[Logged]:
    """Keeps what the module logs within it, graph and all, in place of Lightning, which has no loop going on."""
    logged: Logged = {}

    def log(name: str, value: Any, *_: Any, batch_size: int | None = None, **__: Any) -> None:
        logged[name] = value, batch_size

    def log_dict(values: Any, *_: Any, batch_size: int | None = None, **__: Any) -> None:
        logged.update({name: (value, batch_size) for name, value in values.items()})

    module.__dict__.update(log=log, log_dict=log_dict)
    try:
        yield logged
    finally:
        del module.__dict__["log"], module.__dict__["log_dict"]


@contextmanager
def _metrics_of_a_batch(module: LightningModule) -> Iterator[None]:
    """Lets the module's metrics hold one batch, with its graph where there is one, and nothing afterwards."""
    metrics = [one for one in module.modules() if isinstance(one, Metric)]
    for one in metrics:
        one._enable_grad = torch.is_grad_enabled()
    try:
        yield
    finally:
        for one in metrics:
            one._enable_grad = False
            one.reset()


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):  # also Transformers' BatchEncoding, which is no dict
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _tensors(value)
