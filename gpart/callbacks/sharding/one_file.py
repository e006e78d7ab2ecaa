"""Checkpoints of a sharded run: the one file that a single process would have written, whatever the number of ranks.

Invariant: what is trained is small, so it is whole when it is written, by one rank through the checkpoint plugin, and every
rank reads the same file; a strategy's own folders of shards are never made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer

from gpart.callbacks.checkpoints.plugin import GPartCheckpointIO


def become(strategy: Strategy, subclass: type[OneFile]) -> None:
    """Makes a strategy an instance of our subclass of its class, once.

    A user's own subclass gets a class made for it, which has both before Lightning's.
    """
    if isinstance(strategy, subclass):
        return
    own = type(strategy)
    strategy.__class__ = subclass if own in subclass.__bases__ else type(own.__name__, (subclass, own), {})


class OneFile(Strategy):
    """Put before a sharding strategy of Lightning, whose own checkpoints would go past the plugin."""

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The trainer hands the optimizers' states to the strategy."""
        return True

    def teardown(self) -> None:
        """Waits for what is still being written, which the sharding strategies do not."""
        self.checkpoint_io.teardown()
        super().teardown()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is trained, and the buffers."""
        module, plugin = self.lightning_module, self.checkpoint_io
        if module is None or not isinstance(plugin, GPartCheckpointIO):
            raise TypeError(f"{type(plugin).__name__} is not GPartCheckpointIO")
        frozen = plugin.frozen_keys()
        return {key: value for key, value in module.state_dict().items() if key not in frozen}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """The first rank writes."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Into the module, as without sharding."""
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's own."""
        return Strategy.optimizer_state(self, optimizer)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Into the optimizers, as without sharding."""
        Strategy.load_optimizer_state_dict(self, checkpoint)
