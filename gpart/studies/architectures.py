"""Finds the architecture of a model by its name, and builds a model that has shapes but no weights.

Invariant: only a model's config is read. No weights are read, and no code of the model's repository is run. The configs
in ``gpart/architectures`` can be used without a network; if the hub can be reached, its config is used instead.
"""

from __future__ import annotations

import json
import socket
from copy import deepcopy
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants, is_offline_mode
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

from gpart.assets.fetching import resolve
from gpart.assets.hub_reason import hub_reason
from gpart.errors import GPartError, GPartFileError
from gpart.heads import head_modules
from gpart.injection.matching import matches

SHIPPED = Path(__file__).resolve().parent.parent / "architectures"
ALIASES = {"roberta-base": "FacebookAI/roberta-base", "roberta-large": "FacebookAI/roberta-large"}
"""Old short names, which the hub still redirects."""

TASKS = {
    "sequence-classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
    "image-classification": AutoModelForImageClassification,
}
"""The tasks that a model can be built for, and Transformers' class for each."""

_UNREADABLE = (OSError, ValueError, TypeError, StrictDataclassError)
"""The errors that Transformers raises for a config that is missing, damaged or of an unknown model."""


def shipped() -> dict[str, Path]:
    """Returns the shipped files, by the model's name on the hub.

    Example:
        >>> "FacebookAI/roberta-base" in shipped()
        True
    """
    paths = sorted(SHIPPED.rglob("*.json"))
    # Not with_suffix, since the names have dots in them.
    return {path.relative_to(SHIPPED).as_posix().removesuffix(".json"): path for path in paths}


def config(name: str) -> PretrainedConfig:
    """Returns the config of a model.

    Args:
        name: a folder with a ``config.json``, such a file, ``packaged:NAME``, or a name on the hub. ``roberta-base`` and
            ``roberta-large`` may be written without their owner.

    Raises:
        GPartFileError: if the folder has no ``config.json``, or there is no model of this name. The message then lists
            the names that are shipped.
        GPartError: if the config can't be used.

    Example:
        >>> config("roberta-large").hidden_size
        1024
    """
    path = Path(resolve(name))  # what is packaged lies in a folder
    if name and path.exists():
        return _local(path)
    hub_name = ALIASES.get(name, name)
    known = shipped()
    online = _hub_answers()
    if hub_name in known and not online:
        return _shipped(known[hub_name])
    try:
        # Without a connection, only the hub's local cache is asked: retries would take half a minute.
        return _read(hub_name, local_files_only=not online)
    except _UNREADABLE as error:
        if hub_name in known and isinstance(error, OSError):  # a gated model without a token, or a failing hub
            return _shipped(known[hub_name])
        kind = GPartFileError if isinstance(error, OSError) else GPartError
        raise kind(
            f"no architecture for {name!r}, as a folder or file or on the hub: {hub_reason(name, error)}; shipped are"
            f" {', '.join([*ALIASES, *known])}"
        ) from error


def _local(path: Path) -> PretrainedConfig:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise GPartFileError(f"no config.json in the folder {path}")
    try:
        return _read(str(file), local_files_only=True)
    except _UNREADABLE as error:
        raise GPartError(f"{file} is no config of a model that Transformers knows: {error}") from error


def _shipped(path: Path) -> PretrainedConfig:
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["_source"]
    found: PretrainedConfig = AutoConfig.for_model(**values)
    return found


def _read(name: str, local_files_only: bool) -> PretrainedConfig:
    found: PretrainedConfig = AutoConfig.from_pretrained(
        name, local_files_only=local_files_only, trust_remote_code=False
    )
    return found


def _hub_answers(seconds: float = 3.0) -> bool:
    """Returns whether the hub may be used, and can be reached."""
    if is_offline_mode():
        return False
    if getproxies():
        return True  # the proxy may reach it, which can't be tried here
    hub = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)), seconds):
            return True
    except OSError:
        return False


def find_task(config: PretrainedConfig) -> str:
    """Returns the task that an architecture is for.

    Raises:
        GPartError: if Transformers can build it for none of :data:`TASKS`.

    Example:
        >>> find_task(config("Qwen/Qwen2.5-7B"))
        'causal-lm'
    """
    kind = type(config)
    written = getattr(config, "architectures", None) or []
    # Many encoders have a causal variant, and decoders a classifying one. The class that was trained decides.
    if any(name.endswith("ForCausalLM") for name in written):
        return "causal-lm"
    if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return "image-classification"
    if kind in MODEL_FOR_MASKED_LM_MAPPING and kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return "sequence-classification"
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "causal-lm"
    if kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return "sequence-classification"
    raise GPartError(f"a {config.model_type} model (architectures {written}) is for none of {', '.join(TASKS)}")


def build(config: PretrainedConfig, task: str, device: torch.device | str = "meta") -> nn.Module:
    """Builds a model for a task. On the meta device it has shapes but no weights, elsewhere it has random weights.

    Args:
        config: the model's config.
        task: a key of :data:`TASKS`.
        device: the device to build it on.

    Raises:
        GPartError: if the task is unknown, or Transformers can't build this architecture for it.
    """
    if task not in TASKS:
        raise GPartError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    try:
        with torch.device(device):
            own = deepcopy(config)  # Transformers changes it
            model: nn.Module = TASKS[task].from_config(own, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except (*_UNREADABLE, RuntimeError, ArithmeticError) as error:
        raise GPartError(f"a {config.model_type} model cannot be built for {task}: {error}") from error
    return model


def default_head(model: nn.Module, task: str) -> list[str]:
    """Returns the names of the head's modules. A causal language model has no new head."""
    return [] if task == "causal-lm" else head_modules(model)


def default_targets(model: nn.Module, task: str) -> list[str]:
    """Returns the layers that the paper adapts, by the names that this model has for them.

    These are query and value, and in a causal language model also key and output. GPT-2 has a single layer for query,
    key and value. In a ViT, the query is called ``query`` or ``q_proj``, depending on the version of Transformers.
    """
    if any(matches(path, ["c_attn"]) for path, _ in model.named_modules()):
        return ["c_attn"]
    if task == "causal-lm":
        return ["q_proj", "k_proj", "v_proj", "o_proj"]
    projections = any(matches(path, ["q_proj"]) for path, _ in model.named_modules())
    return ["q_proj", "v_proj"] if projections else ["query", "value"]
