"""Activation checkpointing for networks of Transformers and of timm."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from gpart.errors import GPartError


def checkpoint_activations(network: nn.Module) -> None:
    """Makes the network recompute its activations in the backward pass, which takes less memory.

    Transformers is told not to use re-entrant checkpoints, and timm does not use them by default. The embeddings are
    frozen, and a re-entrant checkpoint needs an input that requires a gradient.

    Raises:
        GPartError: if the network does not support it.
    """
    if isinstance(network, PreTrainedModel):
        try:
            network.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise GPartError(
                f"gradient_checkpointing=True, but {type(network).__name__} does not support it: {error}"
            ) from error
        return
    try:
        network.set_grad_checkpointing(True)  # type: ignore[operator]  # timm's
    except (AttributeError, AssertionError) as error:  # some of timm's models lack the method, others assert
        raise GPartError(
            f"gradient_checkpointing=True, but timm's {type(network).__name__} does not support it: {error}"
        ) from error
