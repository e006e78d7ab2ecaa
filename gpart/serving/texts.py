"""Two tasks on texts: classification, and generation.

Invariant: a text is never cut off silently; one that is too long is refused. What a text gets for an answer does not depend
on which others are in its batch, but for the rounding of a padded product.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpart.injection.facts import PROBLEM_TYPES, classifiers_task
from gpart.serialization.about import About
from gpart.serving.requests import Limits, check_fields, check_tokens, number, text, whole

Encoded = dict[str, list[int]]
_MOST_LABELS = 1000


def scores(logits: Tensor, config: Any, top_k: int, about: About | None = None) -> dict[str, Any]:
    """A classifier's answer for one row of logits.

    Args:
        logits: shape (labels,).
        config: the model's; its ``problem_type`` decides: probabilities by softmax, for several labels at a time by the
            sigmoid, for regression the number itself.
        top_k: how many labels.
        about: what the adapter's file says of its task and its labels, which goes before what the model's config says.

    Returns:
        ``label`` and ``score`` of the best, and ``top``, the first ``top_k`` of them; for regression ``score`` alone.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(num_labels=2, problem_type=None, id2label={0: "no", 1: "yes"})
        >>> scores(torch.tensor([0.0, 0.0]), config, 1)
        {'label': 'no', 'score': 0.5, 'top': [{'label': 'no', 'score': 0.5}]}
    """
    values, about = logits.float(), about or About()
    task = about.task if about.task in ("classification", *PROBLEM_TYPES) else classifiers_task(config)
    if config.num_labels == 1 or task == "regression":
        return {"score": values.flatten()[0].item()} if values.numel() == 1 else {"scores": values.tolist()}
    values = values.sigmoid() if task == "multi-label" else values.softmax(-1)
    own = about.labels is not None and len(about.labels) == values.numel()
    labels: Any = about.labels if own else config.id2label
    best = torch.argsort(values, descending=True, stable=True)[:top_k].tolist()
    top = [{"label": str(labels[i]), "score": values[i].item()} for i in best]
    return {**top[0], "top": top}


@dataclass(frozen=True)
class TextClassification:
    """``{"text": ..., "text_pair": ..., "top_k": 5}`` to ``{"label": ..., "score": ..., "top": [...]}``."""

    tokenizer: Any
    config: Any
    limits: Limits

    def read(self, body: Mapping[str, Any]) -> tuple[Encoded, int]:
        """The tokens, and how many labels are wanted.

        Raises:
            RequestError: if a field is not as it has to be.
        """
        check_fields(body, ("text", "text_pair", "top_k"))
        first = text(body, "text", self.limits)
        second = None if body.get("text_pair") is None else text(body, "text_pair", self.limits)
        top_k = whole(body, "top_k", 5, _MOST_LABELS)
        encoded: Encoded = dict(self.tokenizer(first, second, verbose=False))
        check_tokens(len(encoded["input_ids"]), 0, self.limits)
        return encoded, top_k

    def group(self, read: tuple[Encoded, int]) -> Hashable:
        """All may run together."""
        return None

    @torch.no_grad()
    def run(self, model: nn.Module, read: Sequence[tuple[Encoded, int]], about: About | None) -> list[dict[str, Any]]:
        """The answers, in order."""
        batch = self.tokenizer.pad([encoded for encoded, _ in read], return_tensors="pt")
        logits = model(**{key: value.to(_device(model)) for key, value in batch.items()}).logits.cpu()
        return [scores(row, self.config, top_k, about) for row, (_, top_k) in zip(logits, read, strict=True)]


@dataclass(frozen=True)
class Generation:
    """``{"prompt": ..., "max_new_tokens": 64, "temperature": 0, "top_p": 1}`` to ``{"text": ..., "tokens": ..., ...}``."""

    tokenizer: Any
    limits: Limits

    def read(self, body: Mapping[str, Any]) -> tuple[Encoded, tuple[int, float, float]]:
        """The tokens, and the settings: how many new ones, temperature (0 takes the likeliest token), top_p.

        Raises:
            RequestError: if a field is not as it has to be.
        """
        check_fields(body, ("prompt", "max_new_tokens", "temperature", "top_p"))
        prompt = text(body, "prompt", self.limits)
        most = min(self.limits.new_tokens, self.limits.tokens)
        new = whole(body, "max_new_tokens", min(64, most), most)
        settings = new, number(body, "temperature", 0.0, 0.0, 10.0), number(body, "top_p", 1.0, 0.01, 1.0)
        encoded = self.tokenizer(prompt, verbose=False)
        check_tokens(len(encoded["input_ids"]), new, self.limits)
        return {key: encoded[key] for key in ("input_ids", "attention_mask")}, settings

    def group(self, read: tuple[Encoded, tuple[int, float, float]]) -> Hashable:
        """Those with the same settings may run together."""
        return read[1]

    @torch.no_grad()
    def run(
        self, model: nn.Module, read: Sequence[tuple[Encoded, tuple[int, float, float]]], about: About | None
    ) -> list[dict[str, Any]]:
        """The continuations, in order."""
        new, temperature, top_p = read[0][1]
        batch = self.tokenizer.pad([encoded for encoded, _ in read], return_tensors="pt", padding_side="left")
        drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p}
        generate: Any = model.generate
        rows = generate(
            **{key: value.to(_device(model)) for key, value in batch.items()},
            max_new_tokens=new,
            pad_token_id=self.tokenizer.pad_token_id,
            **(drawn if temperature > 0 else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}),
        )
        start = batch["input_ids"].shape[1]
        return [self._answer(row[start:].tolist(), _ends(model)) for row in rows]

    def _answer(self, tokens: list[int], ends: set[int]) -> dict[str, Any]:
        end = next((i for i, token in enumerate(tokens) if token in ends), None)
        kept = tokens if end is None else tokens[:end]
        written = self.tokenizer.decode(kept, skip_special_tokens=True)
        return {"text": written, "tokens": len(kept), "finish_reason": "length" if end is None else "stop"}


def _ends(model: nn.Module) -> set[int]:
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set() if found is None else {found} if isinstance(found, int) else set(found)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
