"""The linear probe: only the head is trained."""

from __future__ import annotations

from torch import nn

from gpart import base
from gpart.adapter import get_adapters
from gpart.callbacks.checkpoint import PartlyTrained
from gpart.callbacks.method import MethodCallback
from gpart.callbacks.parts import SavedModulesPart


class LinearProbe(MethodCallback):
    """Freezes everything but ``modules_to_save``: the paper's baseline LP.

    Args:
        modules_to_save: what is trained: the head, by name or name ending.
        module: the submodule to freeze; default the only child with parameters, or the whole.
    """

    def __init__(self, modules_to_save: list[str], module: str | None = None) -> None:
        super().__init__(module)
        self.modules_to_save = modules_to_save

    def apply(self, network: nn.Module) -> PartlyTrained:
        """Freezes all but the saved modules.

        Raises:
            ValueError: if the network carries an adapter, or a random head would be frozen.
        """
        if adapters := get_adapters(network):
            raise ValueError(f"the network carries an adapter, {list(adapters)}: detach() it before a linear probe")
        part = SavedModulesPart(network, self.modules_to_save, type(self).__name__)
        if forgotten := base.randomly_initialised(network, part.frozen):
            raise ValueError(
                f"modules_to_save={self.modules_to_save!r} leaves out {forgotten}, which Transformers has just"
                " initialised at random"
            )
        part.freeze()
        return part
