"""What a model computes on made-up inputs: to compare a model with itself, written otherwise.

Invariant: inputs are made from the model's own config and a fixed seed, so two loads of one model get the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gpart.errors import GPartError
from gpart.injection.tensors import same_bits

_BATCH, _TOKENS, _SAMPLES = 2, 16, 16_000


@dataclass(frozen=True)
class Inputs:
    """What a model is called with."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Their names and shapes."""
        named = {**{f"input {i}": value for i, value in enumerate(self.args)}, **self.kwargs}
        shown = (f"{name} {list(value.shape)}" if isinstance(value, Tensor) else name for name, value in named.items())
        return ", ".join(shown)


def made_up_inputs(model: nn.Module) -> Inputs:
    """Random inputs by a model's config: token ids, pixels or sound of Transformers, pictures of timm.

    Any other model is called with its ``example_input_array``, Lightning's name for one.

    Raises:
        GPartError: if the model says of none what it takes.
    """
    generator = torch.Generator().manual_seed(0)
    dtype = next((value.dtype for value in model.parameters() if value.is_floating_point()), torch.float32)
    config = getattr(model, "config", None)
    if hasattr(model, "main_input_name") and config is not None:
        return Inputs(kwargs=_transformers(model, config, generator, dtype))
    described = getattr(model, "pretrained_cfg", None)
    if isinstance(described, dict) and (size := described.get("input_size")):
        return Inputs((torch.randn(_BATCH, *size, generator=generator).to(dtype),))
    example = getattr(model, "example_input_array", None)
    if isinstance(example, Mapping):
        return Inputs(kwargs=dict(example))
    if example is not None:
        return Inputs(tuple(example) if isinstance(example, (tuple, list)) else (example,))
    raise GPartError(
        f"a {type(model).__name__} has no example_input_array, Lightning's name for what it is called with"
    )


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Every tensor in a model's output, in order, in evaluation mode.

    Raises:
        GPartError: if the model cannot be called with these inputs, with what it said.
    """
    was, _ = model.training, model.eval()
    try:
        output = model(*inputs.args, **inputs.kwargs)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:200]
        raise GPartError(
            f"a {type(model).__name__} cannot be called with made-up {inputs}: {type(error).__name__}: {said}"
        ) from error
    finally:
        model.train(was)
    found = [value.detach().clone() for value in _tensors(output)]
    if not found:
        raise GPartError(f"a {type(model).__name__} returns no tensor, but a {type(output).__name__}")
    return found


def largest_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The largest difference between two outputs; 0 is to the bit, infinity where they cannot be compared.

    Example:
        >>> largest_difference([torch.ones(2)], [torch.tensor([1.0, 1.5])]), largest_difference([torch.ones(2)], [])
        (0.5, inf)
    """
    if [value.shape for value in first] != [value.shape for value in second]:
        return float("inf")
    largest = 0.0
    for mine, its in zip(first, second, strict=True):
        if same_bits(mine, its):
            continue
        difference = float((mine.double() - its.double()).abs().max())
        largest = max(largest, float("inf") if math.isnan(difference) else difference)
    return largest


def largest_value(outputs: Sequence[Tensor]) -> float:
    """The largest magnitude in an output, beside which a difference is to be seen."""
    return max((float(value.double().abs().max()) for value in outputs if value.numel()), default=0.0)


def _tensors(output: Any) -> Iterator[Tensor]:
    """Those of a tensor, a mapping or a sequence; a cache of keys and values is no output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for name in output:
            if name != "past_key_values":
                yield from _tensors(output[name])
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)


def _transformers(model: nn.Module, config: Any, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    name = str(model.main_input_name)
    if name == "pixel_values":
        return {name: _pixels(config, generator).to(dtype)}
    if name != "input_ids":
        return {name: torch.randn(_BATCH, _SAMPLES, generator=generator).to(dtype)}
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    longest = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or _TOKENS + 2
    pad = getattr(text, "pad_token_id", None)
    # Decoders with a class head look for the last token that is no padding, and take one text without a padding token.
    rows = 1 if pad is None and "Classification" in type(model).__name__ else _BATCH
    # Two positions less: RoBERTa's begin behind the padding token's.
    shape = rows, max(1, min(_TOKENS, int(longest) - 2))
    ids = torch.randint(0, int(text.vocab_size), shape, generator=generator)
    ids = torch.where(ids == pad, (ids + 1) % int(text.vocab_size), ids) if pad is not None else ids
    more = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
    return {name: ids, **more}


def _pixels(config: Any, generator: torch.Generator) -> Tensor:
    vision = getattr(config, "vision_config", None) or config
    size = getattr(vision, "image_size", None) or 224
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return torch.randn(_BATCH, getattr(vision, "num_channels", None) or 3, int(height), int(width), generator=generator)
