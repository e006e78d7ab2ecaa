"""Random directions in a trained vector's space, scaled to the trained vector.

Invariant: a direction depends on the vector's shapes, its numbers, the seed and the two settings alone, not on the run's
other numbers, the process or the device.

With g of independent normal numbers and r the vector that it is scaled to, a direction is

    whole:    u   = g · ‖r‖ / ‖g‖
    filters:  u_f = g_f · ‖r_f‖ / ‖g_f‖        for each filter f, so that ‖u‖ = ‖r‖ as well

A filter is a row of a parameter with two dimensions or more (the weights of one output feature), and a parameter with one
dimension is one filter. So the two are the same for theta, which is one such parameter, as is Uni-LoRA's vector. r is the
trained vector theta* itself ("norm", the paper's choice), or theta* less what it was before training ("change"), which are
the same where training starts at 0, as theta does.

Source: H. Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, section 4; there a filter is a
convolution's, and biases are left as they are. The paper, section 5.4.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from gpart.errors import GPartError

Scale = Literal["norm", "change"]
Normalise = Literal["whole", "filters"]


def reference(trained: Tensor, start: Tensor, scale: Scale) -> Tensor:
    """The vector r that directions are scaled to, shape (d,).

    Raises:
        GPartError: if there is no such scale, or r is 0.

    Example:
        >>> reference(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 1.0]), "change")
        tensor([0., 3.])
    """
    if scale not in get_args(Scale):
        raise GPartError(f"scale must be one of {list(get_args(Scale))}, got {scale!r}")
    result = trained if scale == "norm" else trained - start
    if not bool(result.any()):
        raise GPartError(f"the vector that directions are scaled to is 0 (scale={scale}): training has not moved it")
    return result


def draw(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two vectors of ``size`` independent normal numbers, float32, on the CPU: the same wherever the seed is."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator), torch.randn(size, generator=generator)


def scaled(direction: Tensor, reference: Mapping[str, Tensor], normalise: Normalise) -> Tensor:
    """A direction with the reference's norm.

    Args:
        direction: g, shape (d,).
        reference: the parts of r in their parameters' shapes, in the vector's order.
        normalise: see the head of this module.

    Raises:
        GPartError: if there is no such normalisation.

    Example:
        >>> rows = {"weight": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}
        >>> scaled(torch.tensor([1.0, 0.0, 2.0, 0.0]), rows, "filters")
        tensor([5., 0., 1., 0.])
    """
    if normalise not in get_args(Normalise):
        raise GPartError(f"normalise must be one of {list(get_args(Normalise))}, got {normalise!r}")
    if normalise == "whole":
        joined = torch.cat([value.reshape(-1) for value in reference.values()])
        return direction * _ratio(joined.norm(), direction.norm())
    parts = []
    for part, value in zip(
        torch.split(direction, [value.numel() for value in reference.values()]), reference.values(), strict=True
    ):
        rows = value.reshape(len(value), -1) if value.dim() > 1 else value.reshape(1, -1)
        drawn = part.view(rows.shape)
        norms = rows.norm(dim=1, keepdim=True), drawn.norm(dim=1, keepdim=True)
        parts.append((drawn * _ratio(*norms)).reshape(-1))
    return torch.cat(parts)


def _ratio(wanted: Tensor, found: Tensor) -> Tensor:
    """The factor; 0 where a filter of a single number was drawn as 0."""
    return torch.where(found > 0, wanted / found, torch.zeros_like(found))
