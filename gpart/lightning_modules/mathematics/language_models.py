"""Pretrained causal language models: from the hub, a folder or a GGUF file, on request with torchao's packed weights.

Invariant: but for packed ones, every weight is a plain tensor in torch's default dtype, which is the trainer's precision
while Lightning builds a model; nothing is left in a file's own blocks, which no gradient passes.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from gpart.assets.fetching import gguf, loading

QUANTIZATIONS = {"int8": "Int8WeightOnlyConfig", "int4": "Int4WeightOnlyConfig"}
"""Our names, and torchao's for what is done to a linear layer's weight."""


def check_quantization(quantization: str | None) -> None:
    """Checks the setting, before anything is loaded.

    Raises:
        ValueError: if there is no such setting, or torchao is missing.
    """
    if quantization is None:
        return
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization must be one of {list(QUANTIZATIONS)} or None, got {quantization!r}")
    if find_spec("torchao") is None:
        raise ValueError(
            f"quantization={quantization!r} is torchao's, which is missing: pip install 'gpart-lightning[quantization]'"
        )


def build(model: str, quantization: str | None = None) -> nn.Module:
    """A pretrained causal language model.

    Args:
        model: a name on the hub, a folder, a GGUF file or a folder with one, or ``packaged:NAME``.
        quantization: None, or a key of ``QUANTIZATIONS``.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read, or torchao cannot pack it on this machine.
    """
    with loading(model) as name:
        place, file = gguf(name)
        settings: dict[str, Any] = dict(file)
        if file and quantization:
            raise ValueError(f"{file['gguf_file']} has its own quantization and is unpacked; got {quantization!r} too")
        if file and hasattr(transformers, "GgufConfig"):  # releases that can keep the file's blocks
            settings["quantization_config"] = transformers.GgufConfig(dequantize=True)
        if quantization:
            settings["quantization_config"] = _torchao(quantization)
        try:
            built: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                place, dtype=torch.get_default_dtype(), **settings
            )
        except (RuntimeError, ImportError, NotImplementedError, AssertionError) as error:
            if not quantization:
                raise
            raise ValueError(f"torchao cannot keep {model!r} as {quantization} on this machine: {error}") from error
    if quantization and all(
        type(value) is nn.Parameter for value in built.parameters()
    ):  # a packed one has its own type
        raise ValueError(f"torchao has packed no weight of {model!r} as {quantization}: its layers may be too narrow")
    if file and getattr(built.config, "quantization_config", None) is not None:
        # Its weights are plain now; as a quantised model it could be neither saved nor cast.
        del built.config.quantization_config
        built.is_quantized = False  # type: ignore[assignment]  # a plain attribute
    return built


def _torchao(quantization: str) -> Any:
    import torchao.quantization as torchao

    return transformers.TorchAoConfig(getattr(torchao, QUANTIZATIONS[quantization])())
