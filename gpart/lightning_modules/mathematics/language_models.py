"""Loads pretrained causal language models from the hub, a folder or a GGUF file, and quantises them with torchao.

Invariant: every weight that torchao has not packed is a plain tensor in torch's default dtype. (While Lightning builds
a model, that is the trainer's precision.) No weight stays in the quantised blocks of a GGUF file, since no gradient can
pass through those.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from gpart.assets.fetching import gguf, loading
from gpart.errors import GPartError

Quantization = Literal["int8", "int4"]

QUANTIZATIONS: dict[Quantization, str] = {"int8": "Int8WeightOnlyConfig", "int4": "Int4WeightOnlyConfig"}
"""The name of torchao's config for each quantisation of a linear layer's weight."""


def check_quantization(quantization: Quantization | None) -> None:
    """Checks the setting, before anything is loaded.

    Raises:
        GPartError: if there is no such quantisation, or torchao is not installed.
    """
    if quantization is None:
        return
    if quantization not in get_args(Quantization):
        known = list(get_args(Quantization))
        raise GPartError(f"quantization must be one of {known} or None, got {quantization!r}")
    if find_spec("torchao") is None:
        raise GPartError(
            f"quantization={quantization!r} is torchao's, which is missing: pip install 'gpart-lightning[quantization]'"
        )


def build(model: str, quantization: Quantization | None = None) -> nn.Module:
    """Loads a pretrained causal language model.

    Args:
        model: a name on the hub, a folder, a GGUF file or a folder with one, or ``packaged:NAME``.
        quantization: the quantisation of the linear layers' weights, if any.

    Raises:
        GPartFileError: if there is no such model.
        GPartError: if it can't be read, or torchao can't quantise it on this machine.
    """
    with loading(model) as name:
        place, file = gguf(name)
        settings: dict[str, Any] = dict(file)
        if file and quantization:
            raise GPartError(f"{file['gguf_file']} has its own quantization and is unpacked; got {quantization!r} too")
        if file and hasattr(transformers, "GgufConfig"):  # only releases that can keep the file's blocks have it
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
            raise GPartError(f"torchao cannot keep {model!r} as {quantization} on this machine: {error}") from error
    if quantization and all(
        type(value) is nn.Parameter for value in built.parameters()
    ):  # a packed one has its own type
        raise GPartError(f"torchao has packed no weight of {model!r} as {quantization}: its layers may be too narrow")
    if file and getattr(built.config, "quantization_config", None) is not None:
        # Its weights are plain tensors now. A model that is marked as quantised could be neither saved nor cast.
        del built.config.quantization_config
        built.is_quantized = False  # type: ignore[assignment]  # a plain attribute
    return built


def _torchao(quantization: Quantization) -> Any:
    import torchao.quantization as torchao  # noqa: PLC0415  # an optional dependency

    return transformers.TorchAoConfig(getattr(torchao, QUANTIZATIONS[quantization])())
