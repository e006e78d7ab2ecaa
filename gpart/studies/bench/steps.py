"""One training step, one evaluation step, one generation: what is timed of each contestant.

Invariant: every contestant gets the same tokens and labels, and does what a training loop does: forward, backward,
AdamW on the trained numbers, gradients set to None. The floor alone has no optimizer.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from gpart import GPartAdapter
from gpart.studies.bench.settings import FLOOR, Method
from gpart.studies.bench.subject import Subject, apply, trained_parameters

PROMPT = 16
"""Tokens that a generation starts from."""

_RATE = 1e-4  # small enough for random weights to stay finite; the time does not depend on it


@dataclass(frozen=True)
class Batch:
    """Random tokens, without padding, and labels."""

    ids: Tensor
    """Shape (batch, tokens), int64."""

    labels: Tensor
    """Shape (batch,), the classes; of a causal language model the tokens themselves."""


def make_batch(subject: Subject, shape: tuple[int, int], seed: int, device: torch.device) -> Batch:
    """A batch that is a function of the seed alone, on every device."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(subject.config.vocab_size - 1, shape, generator=generator)
    ids += ids >= subject.config.pad_token_id
    labels = ids
    if subject.task != "causal-lm":
        labels = torch.randint(subject.sizes.num_labels, shape[:1], generator=generator)
    return Batch(ids.to(device), labels.to(device))


@dataclass(frozen=True)
class Contestant:
    """A method on a model of its own."""

    method: Method
    subject: Subject
    model: nn.Module
    adapter: GPartAdapter | None
    optimizer: AdamW | None
    """None of the floor, and where nothing is trained: of ``frozen`` on a model without a head."""

    def train_step(self, batches: list[Batch]) -> None:
        """One step over these micro-batches."""
        for batch in batches:
            loss = self.loss(batch)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        if self.optimizer is not None:
            self.optimizer.step()
        self.model.zero_grad(set_to_none=True)

    def loss(self, batch: Batch) -> Tensor:
        """The loss, with what its backward pass needs."""
        loss: Tensor = self._forward(batch, labels=batch.labels).loss
        return loss

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """The logits."""
        logits: Tensor = self._forward(batch).logits
        return logits

    @torch.no_grad()
    def generate(self, batch: Batch, new_tokens: int) -> Tensor:
        """The batch's tokens and this many more, greedily, with the cache of keys and values."""
        with self.subject.autocast(batch.ids.device):
            ids: Tensor = self.model.generate(  # type: ignore[operator]  # Transformers' method
                input_ids=batch.ids,
                attention_mask=torch.ones_like(batch.ids),
                do_sample=False,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                use_cache=True,
                pad_token_id=self.subject.config.pad_token_id,
            )
        return ids

    def _forward(self, batch: Batch, **more: Tensor | bool) -> Any:
        if self.subject.task == "causal-lm":
            more["use_cache"] = False
        with self.subject.autocast(batch.ids.device):
            return self.model(input_ids=batch.ids, attention_mask=torch.ones_like(batch.ids), **more)


def enter(method: Method, subject: Subject, base: nn.Module, copy: bool = True) -> Contestant:
    """Makes a contestant.

    Args:
        method: what is applied.
        subject: what ``base`` was built from.
        base: the model.
        copy: whether ``base`` is left as it is.

    Raises:
        GPartError: if the method cannot be applied to the model.
    """
    model = deepcopy(base) if copy else base
    adapter = apply(method, subject, model)
    trained = trained_parameters(model)
    optimizer = AdamW(trained, lr=_RATE) if trained and method.kind != FLOOR else None
    return Contestant(method, subject, model, adapter, optimizer)
