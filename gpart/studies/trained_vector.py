"""What a method trains beside the head, as one flat vector that can be read and written.

Invariant: the vector is the method's trainable parameters without the head's, each once, flattened row-major and joined
in the order of ``named_parameters``. Writing changes the parameters in place, so that whoever holds them sees it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpart.errors import GPartError
from gpart.injection.names import named_parameters


@dataclass(frozen=True)
class TrainedVector:
    """A method's trainable vector without the head: theta for GPart, A and B of every layer for LoRA.

    Attributes:
        parameters: its parts by their names in the network.
    """

    parameters: Mapping[str, nn.Parameter]

    @property
    def size(self) -> int:
        """Its length, d."""
        return sum(value.numel() for value in self.parameters.values())

    def read(self) -> Tensor:
        """A copy of the vector, shape (d,), on the parameters' device; its dtype is the widest of theirs."""
        return torch.cat([value.detach().reshape(-1) for value in self.parameters.values()])

    def write(self, vector: Tensor) -> None:
        """Puts the numbers of a vector into the parameters.

        Args:
            vector: shape (d,); each part is rounded to its parameter's dtype and moved to its device.

        Raises:
            GPartError: if its length is not d.
        """
        with torch.no_grad():
            for name, part in self.split(vector).items():
                self.parameters[name].copy_(part)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """The parts of a vector in the shapes of the parameters, as views.

        Raises:
            GPartError: if its length is not d.

        Example:
            >>> layer = nn.Linear(2, 1)
            >>> trained_vector(layer).split(torch.arange(3.0))
            {'weight': tensor([[0., 1.]]), 'bias': tensor([2.])}
        """
        if vector.shape != (self.size,):
            raise GPartError(f"a vector of shape {list(vector.shape)} for {self.size} trained numbers")
        parts = torch.split(vector, [value.numel() for value in self.parameters.values()])
        return {
            name: part.view(value.shape) for (name, value), part in zip(self.parameters.items(), parts, strict=True)
        }


def trained_vector(network: nn.Module, head: Collection[str] = ()) -> TrainedVector:
    """The vector of a network that a method has been applied to.

    Args:
        network: the adapted network: what requires a gradient is trained.
        head: the names of the head's parameters, which are left out; a shared one by any of its names.

    Raises:
        GPartError: if nothing else is trained.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> trained_vector(net, head=["1.weight", "1.bias"]).size
        15
    """
    every = named_parameters(network, remove_duplicate=False)
    left_out = {id(every[name]) for name in head}
    trained = {name: value for name, value in named_parameters(network).items() if value.requires_grad}
    kept = {name: value for name, value in trained.items() if id(value) not in left_out}
    if not kept:
        raise GPartError(f"nothing is trained in {type(network).__name__} beside its head, {sorted(head)}")
    return TrainedVector(kept)
