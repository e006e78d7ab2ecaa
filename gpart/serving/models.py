"""The base model of a server, from a Transformers folder or a name on the hub.

Invariant: no code of a model's folder is run. The model is in eval mode, without gradients, on its device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from gpart.errors import GPartError
from gpart.injection.forgotten import randomly_initialised
from gpart.injection.names import named_parameters
from gpart.serving.engine import Task
from gpart.serving.images import ImageClassification
from gpart.serving.requests import Limits
from gpart.serving.store import AdapterStore
from gpart.serving.texts import Generation, TextClassification

CLASSES: Mapping[str, Any] = {
    "text-classification": AutoModelForSequenceClassification,
    "generation": AutoModelForCausalLM,
    "image-classification": AutoModelForImageClassification,
}
"""The tasks, and what builds their models."""

_ENDINGS = {
    "ForSequenceClassification": "text-classification",
    "ForCausalLM": "generation",
    "LMHeadModel": "generation",
    "ForImageClassification": "image-classification",
}
_FEW = 20  # stored adapters that are asked for the number of labels
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError)


def read_config(base: str) -> Any:
    """A model's config.

    Raises:
        GPartError: if there is none that Transformers can read.
    """
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False)
    except _UNREADABLE as error:
        raise GPartError(f"{base} is no model that Transformers can read: {_first_line(error)}") from error


def task_of(config: Any, wanted: str = "auto") -> str:
    """The task that a model is served for: the one that its class was made for, where that says it.

    Raises:
        GPartError: if it does not, or another is wanted than the architecture has.

    Example:
        >>> from transformers import BertConfig
        >>> task_of(BertConfig(architectures=["BertForSequenceClassification"]))
        'text-classification'
        >>> task_of(BertConfig(architectures=["BertModel"]))
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: ['BertModel'] says no task: give --task text-classification, generation
    """
    able = [task for task, auto in CLASSES.items() if type(config) in auto._model_mapping]
    written = getattr(config, "architectures", None) or []
    if wanted == "auto":
        found = next((task for end, task in _ENDINGS.items() if any(name.endswith(end) for name in written)), None)
        wanted = found or (able[0] if len(able) == 1 else "auto")
    if wanted == "auto":
        raise GPartError(f"{written} says no task: give --task {', '.join(able) or 'of another model'}")
    if wanted not in able:
        raise GPartError(
            f"a {config.model_type} model cannot be served for {wanted}; it can for {able or 'nothing here'}"
        )
    return wanted


def labels_in(store: AdapterStore, config: Any, task: str) -> int | None:
    """How many labels the stored adapters' heads have, where it is another number than the model's config has.

    The first readable adapter tells, by the parameter that has as many rows as the model has labels.

    Raises:
        GPartError: if Transformers cannot build the model.
    """
    if task == "generation":
        return None
    try:
        with torch.device("meta"):
            built = CLASSES[task].from_config(config)
    except _UNREADABLE as error:
        raise GPartError(
            f"a {config.model_type} model cannot be built from its config: {_first_line(error)}"
        ) from error
    shapes = {name: value.shape for name, value in built.named_parameters()}
    for name in store.names()[:_FEW]:
        try:
            others = store.get(name).others
        except GPartError:
            continue
        rows = {
            value.shape[0]
            for key, value in others.items()
            if key in shapes and shapes[key][0] == config.num_labels and value.shape[1:] == shapes[key][1:]
        }
        if len(rows) == 1 and rows != {config.num_labels}:
            return int(rows.pop())
    return None


def load_model(base: str, task: str, config: Any, dtype: str = "auto", device: str = "cpu") -> nn.Module:
    """The model of a task, for inference.

    Raises:
        GPartError: if Transformers cannot load it.
    """
    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    try:
        model: nn.Module = CLASSES[task].from_pretrained(base, config=config, dtype=kind, trust_remote_code=False)
    except _UNREADABLE as error:
        raise GPartError(f"{base} cannot be loaded for {task}: {_first_line(error)}") from error
    return model.to(device).eval().requires_grad_(requires_grad=False)


def make_task(base: str, task: str, config: Any, limits: Limits) -> Task:
    """What reads and answers requests: the task with the model's own tokenizer or image processor.

    Raises:
        GPartError: if it has none that Transformers can load.
    """
    try:
        if task == "image-classification":
            processor: Any = AutoImageProcessor
            return ImageClassification(processor.from_pretrained(base, trust_remote_code=False), config, limits)
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    except _UNREADABLE as error:
        raise GPartError(f"{base} has nothing that prepares inputs for {task}: {_first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what Transformers makes where there is no file
        raise GPartError(f"{base} has no tokenizer: the one that Transformers makes for it knows no word")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise GPartError(f"the tokenizer of {base} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    tokens = min(limits.tokens, int(positions), int(tokenizer.model_max_length))
    limits = Limits(**{**vars(limits), "tokens": tokens})
    if task == "generation":
        return Generation(tokenizer, limits)
    return TextClassification(tokenizer, config, limits)


def untrained(model: nn.Module) -> str:
    """Why a base model answers nothing by itself: parameters that its checkpoint lacks; empty if it has all."""
    missing = randomly_initialised(model, named_parameters(model))
    if not missing:
        return ""
    return f"the base has no trained {missing[0]}: name an adapter, which brings its own head"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
