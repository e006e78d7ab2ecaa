"""What the scripts of this folder measure, and how they print it: one JSON list, the last line of the output."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from gpart.adapter import GPartAdapter
from gpart.callbacks import GPartCallback
from gpart.callbacks.packages import OfBoth

warnings.simplefilter("ignore")
logging.getLogger("lightning").setLevel(logging.ERROR)
for one in ("lightning.pytorch", "pytorch_lightning"):
    logging.getLogger(one).setLevel(logging.ERROR)


class FirstLoss(OfBoth, Callback):
    """Remembers the loss of the first training step, which is made before anything has changed."""

    def __init__(self) -> None:
        self.loss: float | None = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Looks once."""
        if self.loss is None:
            found = outputs["loss"] if isinstance(outputs, dict) else outputs
            self.loss = float(found)


class Watched(GPartCallback):
    """GPartCallback, which also notes what a table of facts needs."""

    facts: dict[str, Any]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Copies the frozen weights."""
        super().on_train_start(trainer, pl_module)
        self._before = frozen_bits(self.adapter)
        self.facts = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Notes the first loss: theta was 0 in it."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if "first loss" not in self.facts:
            self.facts["first loss"] = float(outputs["loss"] if isinstance(outputs, dict) else outputs)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Notes how far theta went, and whether the frozen weights are what they were."""
        super().on_train_end(trainer, pl_module)
        self.facts |= moved(self.adapter, self._before)
        del self._before

    def found(self, plain: FirstLoss) -> dict[str, Any]:
        """The facts, with the first loss compared with the plain project's."""
        first = self.facts.pop("first loss")
        return {"first loss as without the line": first == plain.loss, **self.facts}


def frozen_bits(adapter: GPartAdapter) -> dict[str, Tensor]:
    """A copy of every frozen parameter."""
    return {name: value.detach().clone() for name, value in adapter.base_parameters().items()}


def moved(adapter: GPartAdapter, before: dict[str, Tensor]) -> dict[str, Any]:
    """What was adapted, how far theta went, and whether the frozen weights kept their bits."""
    now = frozen_bits(adapter)
    return {
        "adapted weights": len(adapter.plan.weights),
        "D": adapter.size,
        "d": adapter.config.d,
        "length of theta": round(float(adapter.values.detach().norm()), 6),
        "frozen weights kept": now.keys() == before.keys()
        and all(torch.equal(now[name], before[name]) for name in now),
    }


def difference(one: Any, other: Any) -> float:
    """The largest difference between two outputs: 0.0 where they are equal to the bit."""
    first, second = torch.as_tensor(one).double(), torch.as_tensor(other).double()
    if first.shape != second.shape or not first.isfinite().all():
        raise ValueError(f"outputs of shapes {tuple(first.shape)} and {tuple(second.shape)}, or not finite")
    return float((first - second).abs().max())


def report(*packages: str, rows: list[dict[str, Any]]) -> None:
    """Prints the rows with the versions, as the last line."""
    from importlib.metadata import version

    versions = {name: version(name) for name in (*packages, "torch", "numpy")}
    for name in ("lightning", "pytorch_lightning", "transformers"):
        if name in sys.modules:
            versions[name] = importlib.import_module(name).__version__
    print(json.dumps({"versions": versions, "rows": rows}))
