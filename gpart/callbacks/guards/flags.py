"""That what a method has frozen stays frozen, and its own numbers are trained.

Invariant: no step is taken while a frozen parameter of the adapted network requires a gradient: it would be trained, and
no checkpoint would hold it. The head may rest for some epochs: every checkpoint holds it.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from gpart.errors import GPartError
from gpart.injection.names import named_parameters


class Flags:
    """The requires_grad of a network's parameters as the method has set them."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._trained = {name: value.requires_grad for name, value in named_parameters(network).items()}

    def check(self, method: str, head: Collection[str]) -> None:
        """Compares them with what they are now.

        Args:
            method: the callback's name.
            head: the names of what may be frozen for a while.

        Raises:
            GPartError: if something has frozen or unfrozen another parameter since, with the names and what to do.
        """
        now = {name: value.requires_grad for name, value in named_parameters(self._network).items()}
        unfrozen = [name for name, trained in self._trained.items() if not trained and now.get(name)]
        frozen = [name for name, on in self._trained.items() if on and now.get(name) is False and name not in head]
        advice = "a callback such as BackboneFinetuning, or the module's own code, has set requires_grad"
        if unfrozen:
            raise GPartError(
                f"{len(unfrozen)} parameters that {method} froze are to be trained again, {unfrozen[:3]}, and no"
                f" checkpoint would hold them: {advice}. Leave it out, or name their modules in modules_to_save"
            )
        if frozen:
            raise GPartError(f"{frozen[:3]}, which {method} trains, are frozen now: {advice}. Leave it out")


def refuse_unfrozen(network: nn.Module, frozen: Collection[str]) -> None:
    """Checks, when fit starts, that nothing in the network requires a gradient that no checkpoint would hold.

    Flags alone cannot tell: a second fit, or one that adopts an adapter, finds them as someone has set them since.

    Args:
        network: the adapted module.
        frozen: names of what is left out of checkpoints.

    Raises:
        GPartError: if so, with the names.
    """
    if found := [name for name, value in named_parameters(network).items() if value.requires_grad and name in frozen]:
        raise GPartError(
            f"{found[:3]} of {type(network).__name__} require a gradient, and no checkpoint would hold them: freeze them"
            " again (requires_grad_(False)), or name their modules in modules_to_save"
        )
