"""Activation checkpointing by one call, for networks of Transformers and of timm."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def checkpoint_activations(network: nn.Module) -> None:
    """Recomputes activations in the backward pass, for less memory.

    Never re-entrant (timm's default): the embeddings are frozen, and a re-entrant region needs an input that requires
    a gradient.

    Raises:
        ValueError: if the network cannot.
    """
    if isinstance(network, PreTrainedModel):
        network.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]  # its error is a ValueError
        return
    try:
        network.set_grad_checkpointing(True)  # type: ignore[operator]  # timm's
    except (AttributeError, AssertionError) as error:  # some of timm's models assert, some lack it
        raise ValueError(
            f"gradient_checkpointing=True, but timm's {type(network).__name__} does not support it: {error}"
        ) from error
