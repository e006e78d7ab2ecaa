"""What a run came to, as one JSON file: scores, seconds, parameters, memory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from gpart.callbacks.method import MethodCallback
from gpart.callbacks.packages import OfBoth
from gpart.callbacks.saving import keeper_of
from gpart.callbacks.table import kept_bytes
from gpart.serialization.atomic import replacing
from gpart.version import __version__


class MetricsWriter(OfBoth, Callback):
    """Writes ``fit``'s and ``test``'s results to a JSON file, on the first rank.

    After fit: ``fit`` with its ``seconds`` (from the first training step's start to the end of training, validation
    within it included), ``epochs``, ``steps``, the best checkpoint's ``best_monitor``, ``best_mode`` (max or min) and ``best_score``, and the
    ``last`` validation's metrics, all that it logged by whatever names; ``parameters`` with those ``trainable`` and, of them, the ``head``'s;
    ``kept_bytes``, what a checkpoint keeps of the network; ``peak_memory_bytes``, the GPU's allocated memory or the
    process's resident memory; ``device``; ``versions``. ``state`` is ``"fitted"``; after test, which adds its metrics
    under ``test``, all of them, it is ``"tested"``.

    Args:
        path: the file, replaced as a whole each time.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._record: dict[str, Any] = {}
        self._last: dict[str, float] = {}
        self._start = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins a new record."""
        self._record, self._last = {}, {}
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._record["fit"] = {"seconds": round(time.perf_counter() - self._start, 2)}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the validation's metrics: at the end of fit they stand among those of training."""
        results = trainer._results
        if results is not None and not trainer.sanity_checking:
            self._last = _plain(results.metrics(on_step=False)["callback"])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what fit came to: by now the last checkpoint is chosen."""
        best = keeper_of(trainer) or trainer.checkpoint_callback
        score = getattr(best, "best_model_score", None)
        self._record.setdefault("fit", {"seconds": 0.0}).update(
            epochs=trainer.current_epoch,
            steps=trainer.global_step,
            best_monitor=getattr(best, "monitor", None),
            best_mode=getattr(best, "mode", None),
            best_score=None if score is None else float(score),
            last=self._last,
        )
        trainable, head = _counts(trainer, pl_module)
        self._record["parameters"] = {"trainable": trainable, "head": head}
        self._record["kept_bytes"] = kept_bytes(pl_module)
        self._write(trainer, "fitted")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the score."""
        self._record["test"] = _plain(trainer.callback_metrics)
        self._write(trainer, "tested")

    def _write(self, trainer: Trainer, state: str) -> None:
        if not trainer.is_global_zero:
            return
        versions = {"gpart": __version__, "torch": torch.__version__, "lightning": lightning.__version__}
        record = {
            "state": state,
            **self._record,
            "peak_memory_bytes": _peak_memory(trainer.strategy.root_device),
            "device": _device(trainer),
            "versions": {**versions, "transformers": transformers.__version__},
        }
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(self.path)) as file:
            file.write((json.dumps(record, indent=1) + "\n").encode())


def _counts(trainer: Trainer, pl_module: LightningModule) -> tuple[int, int]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
    # Those of one network count all that is trained in it.
    counts = {one.module: one.counts() for one in callbacks if isinstance(one, MethodCallback)}.values()
    if counts:
        return sum(trained for trained, _ in counts), sum(head for _, head in counts)
    return sum(value.numel() for value in pl_module.parameters() if value.requires_grad), 0


def _plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if isinstance(value, Tensor)}


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None  # it has no getrusage
    import resource  # noqa: PLC0415  # Windows has no such module

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kilobytes on Linux


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
