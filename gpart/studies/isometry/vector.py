"""The trainable vector of a network's method, without the head: which parameters it is made of, and its map.

Invariant: the vector is the parameters' numbers, row-major, in the order of ``names``; the map that comes with it takes
them in this order. What is not understood is refused by name, not left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from gpart.adapter import GPartAdapter, get_adapters
from gpart.errors import GPartError
from gpart.injection.names import named_parameters
from gpart.projections.fastfood import Fastfood
from gpart.projections.registry import make_projection
from gpart.studies.isometry.maps import Dense, FourierFT, Frequencies, Grouped, Map
from gpart.studies.isometry.products import LoRA, Rank, Scales, UniLoRA, VeRA


class NoAdapterError(GPartError):
    """A network has no adapter, as after full fine-tuning or a linear probe."""


class NotFiniteError(GPartError):
    """A trainable vector has NaN or infinite numbers, as after a divergence."""


@dataclass(frozen=True)
class Trainable:
    """The parameters that a method trains beside the head, and what they do to the weights."""

    method: str
    """As ``--method`` names it."""

    names: tuple[str, ...]
    """As in the network's ``named_parameters()``."""

    map: Map

    def vector(self, values: Mapping[str, Tensor]) -> Tensor:
        """The vector, shape (d,), float64.

        Args:
            values: parameters by name, such as a checkpoint's.

        Raises:
            GPartError: if one is not there.
        """
        if missing := [name for name in self.names if name not in values]:
            raise GPartError(f"{missing[:3]} are not there; there are {list(values)[:5]}")
        return torch.cat([values[name].detach().double().reshape(-1).cpu() for name in self.names])


def find_trainable(network: nn.Module) -> Trainable:
    """The trainable vector of the method that a network was adapted by.

    Raises:
        NoAdapterError: if it has none.
        GPartError: if it is none of those whose map is known.
    """
    if adapters := get_adapters(network):
        if len(adapters) > 1:
            raise GPartError(f"the network has the adapters {list(adapters)}: isometry is of one")
        return _gpart(network, next(iter(adapters.values())))
    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    if not layers:
        raise NoAdapterError(
            f"{type(network).__name__} has no adapter: isometry is of GPart, LoRA, VeRA, FourierFT and Uni-LoRA; training"
            " weights themselves is an isometry by itself"
        )
    kinds = {type(layer).__module__.split(".")[2] for layer in layers}
    readers = {"lora": _lora, "vera": _vera, "fourierft": _fourierft, "unilora": _unilora}
    if len(kinds) > 1 or not kinds <= readers.keys():
        raise GPartError(f"isometry knows PEFT's {', '.join(readers)}, the network has {', '.join(sorted(kinds))}")
    (kind,) = kinds
    names = {id(value): name for name, value in named_parameters(network).items()}
    parameters, made = readers[kind](layers)
    return Trainable(kind, tuple(names[id(value)] for value in parameters), made)


def _gpart(network: nn.Module, adapter: GPartAdapter) -> Trainable:
    config = adapter.config
    projection = make_projection(config.projection, adapter.size, config.d, config.seed)
    names = {id(value): name for name, value in named_parameters(network).items()}
    name = (names[id(adapter.theta)],)
    if isinstance(projection, Fastfood):
        return Trainable("gpart-fastfood", name, Dense(projection, projection.constants(dtype=torch.float64)))
    kind = "gpart" if config.projection == "partition" else f"gpart-{config.projection}"
    return Trainable(kind if config.isometric else f"{kind}-non-isometric", name, Grouped(projection, config.isometric))


Read = tuple[list[Tensor], Map]


def _lora(layers: Sequence[Any]) -> Read:
    parameters, ranks = [], []
    for layer in layers:
        adapter = _one(layer)
        if not isinstance(layer.get_base_layer(), nn.Linear) or layer.lora_variant or layer.lora_bias.get(adapter):
            raise GPartError(f"isometry knows plain LoRA on nn.Linear, the network has {layer!r}"[:300])
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        parameters += [a, b]
        ranks.append(Rank((b.shape[0], a.shape[1]), a.shape[0], float(layer.scaling[adapter])))
    return parameters, LoRA(ranks)


def _vera(layers: Sequence[Any]) -> Read:
    parameters, scales = [], []
    for layer in layers:
        adapter = _one(layer)
        parameters += [layer.vera_lambda_d[adapter], layer.vera_lambda_b[adapter]]
        a = layer.vera_A[adapter][:, : layer.in_features]
        b = layer.vera_B[adapter][: layer.out_features]
        scales.append(Scales(a.detach().double(), b.detach().double()))
    return parameters, VeRA(scales)


def _fourierft(layers: Sequence[Any]) -> Read:
    parameters, frequencies = [], []
    for layer in layers:
        adapter = _one(layer)
        parameters.append(layer.fourierft_spectrum[adapter])
        shape = (layer.out_features, layer.in_features)
        frequencies.append(Frequencies(shape, layer.indices[adapter], float(layer.fourierft_scaling[adapter])))
    return parameters, FourierFT(frequencies)


def _unilora(layers: Sequence[Any]) -> Read:
    ranks, indices, factors = [], [], []
    for layer in layers:
        adapter = _one(layer)
        a, b = layer.unilora_indices_A[adapter], layer.unilora_indices_B[adapter]
        ranks.append(Rank((b.shape[0], a.shape[1]), a.shape[0], 1.0))
        indices += [a.reshape(-1), b.reshape(-1)]
        factors += [layer.unilora_scales_A[adapter].reshape(-1), layer.unilora_scales_B[adapter].reshape(-1)]
    shared = layers[0].unilora_theta_d[_one(layers[0])]
    return [shared], UniLoRA(LoRA(ranks), torch.cat(indices).long(), torch.cat(factors).double())


def _one(layer: Any) -> str:
    active: list[str] = layer.active_adapters
    if len(active) != 1:
        raise GPartError(f"the network has PEFT's adapters {active} at once: isometry is of one")
    return active[0]
