"""From a model's name to its architecture: a Transformers config, and a model that has shapes and no numbers.

Invariant: only a config is ever read: no weights are, and no code of the model's repository is run. A name shipped in
``gpart/architectures`` has a config without a network; what the hub says goes before the shipped file.
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

from gpart.injection.targets import matches

SHIPPED = Path(__file__).resolve().parent.parent / "architectures"
ALIASES = {"roberta-base": "FacebookAI/roberta-base", "roberta-large": "FacebookAI/roberta-large"}
"""The short names of old that the hub still redirects."""

TASKS = {
    "sequence-classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
    "image-classification": AutoModelForImageClassification,
}
"""What a model can be built for."""

_UNREADABLE = (OSError, ValueError, TypeError, StrictDataclassError)
"""What Transformers raises for a config that is missing, damaged or not one of its own."""


def shipped() -> dict[str, Path]:
    """The shipped files by the model's name on the hub.

    Example:
        >>> "FacebookAI/roberta-base" in shipped()
        True
    """
    paths = sorted(SHIPPED.rglob("*.json"))
    # Not with_suffix: the names have dots of their own.
    return {path.relative_to(SHIPPED).as_posix().removesuffix(".json"): path for path in paths}


def config(name: str) -> PretrainedConfig:
    """The architecture of a model.

    Args:
        name: a folder with a ``config.json``, such a file, or a name on the hub; ``roberta-base`` and
            ``roberta-large`` go without their owner.

    Raises:
        FileNotFoundError: if the folder has no ``config.json``.
        ValueError: if the file cannot be used, or nothing is found under this name; with the shipped names.

    Example:
        >>> config("roberta-large").hidden_size
        1024
    """
    path = Path(name)
    if name and path.exists():
        return _local(path)
    hub_name = ALIASES.get(name, name)
    known = shipped()
    online = _hub_answers()
    if hub_name in known and not online:
        return _shipped(known[hub_name])
    try:
        # Without a hub its cache may have it; asking would cost half a minute of retries.
        return _read(hub_name, local_files_only=not online)
    except _UNREADABLE as error:
        if hub_name in known and isinstance(error, OSError):  # a gated model without a token, or a failing hub
            return _shipped(known[hub_name])
        reached = "on the hub" if online else "in the cache of the hub, which cannot be reached"
        raise ValueError(
            f"no architecture for {name!r}: no such folder or file, and none {reached}; shipped are"
            f" {', '.join([*ALIASES, *known])}; Transformers says: {error}"
        ) from error


def _local(path: Path) -> PretrainedConfig:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no config.json in the folder {path}")
    try:
        return _read(str(file), local_files_only=True)
    except _UNREADABLE as error:
        raise ValueError(f"{file} is no config of a model that Transformers knows: {error}") from error


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
    """Whether the hub may be asked, and can be reached."""
    if is_offline_mode():
        return False
    if getproxies():
        return True  # then it is the proxy that reaches it
    hub = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)), seconds):
            return True
    except OSError:
        return False


def find_task(config: PretrainedConfig) -> str:
    """What an architecture is for.

    Raises:
        ValueError: if Transformers has none of :data:`TASKS` for it.

    Example:
        >>> find_task(config("Qwen/Qwen2.5-7B"))
        'causal-lm'
    """
    kind = type(config)
    written = getattr(config, "architectures", None) or []
    # Encoders have a causal variant and decoders a classifying one: how it was trained decides.
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
    raise ValueError(f"a {config.model_type} model (architectures {written}) is for none of {', '.join(TASKS)}")


def build(config: PretrainedConfig, task: str, device: torch.device | str = "meta") -> nn.Module:
    """A model for this task, of shapes alone on the meta device, elsewhere with random weights.

    Raises:
        ValueError: if the task is unknown, or Transformers cannot build this architecture for it.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    try:
        with torch.device(device):
            # A copy, since Transformers writes into it.
            model: nn.Module = TASKS[task].from_config(deepcopy(config), trust_remote_code=False)  # type: ignore[no-untyped-call]
    except (*_UNREADABLE, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"a {config.model_type} model cannot be built for {task}: {error}") from error
    return model


def default_head(model: nn.Module, task: str) -> list[str]:
    """The head: what stands beside the backbone; a causal language model keeps its own."""
    if task == "causal-lm":
        return []
    backbone = getattr(model, "base_model_prefix", "")
    return [
        name for name, child in model.named_children() if name != backbone and any(True for _ in child.parameters())
    ]


def default_targets(model: nn.Module, task: str) -> list[str]:
    """The paper's adapted layers, by the names that this model has for them.

    Query and value; of a causal language model also key and output, of GPT-2 the one layer that query, key and value are
    there. Transformers calls a ViT's ``query`` or ``q_proj``, depending on its version.
    """
    if any(matches(path, ["c_attn"]) for path, _ in model.named_modules()):
        return ["c_attn"]
    if task == "causal-lm":
        return ["q_proj", "k_proj", "v_proj", "o_proj"]
    projections = any(matches(path, ["q_proj"]) for path, _ in model.named_modules())
    return ["q_proj", "v_proj"] if projections else ["query", "value"]
