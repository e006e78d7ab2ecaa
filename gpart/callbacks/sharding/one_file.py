"""Checkpoints of a sharded run: the one file that a single process would have written, whatever the number of ranks.

Invariant: what is trained is small, so it is whole when it is written, by one rank through the checkpoint plugin, and every
rank reads the same file; a strategy's own folders of shards are never made.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer

from gpart.callbacks.checkpoints.plugin import GPartCheckpointIO
from gpart.callbacks.packages import both


def become(strategy: Strategy, ours: type[OneFile]) -> None:
    """Makes a strategy an instance of a class that has ours before its own, the user's or either package's; once."""
    if not isinstance(strategy, ours):
        own = type(strategy)
        strategy.__class__ = type(own.__name__, (ours, own), {})


if TYPE_CHECKING:
    _Strategy = Strategy
else:
    _Strategy = ABC  # as Lightning's: an object's class can be changed to one of the same layout only


class OneFile(_Strategy):
    """Put before a sharding strategy of Lightning, whose own checkpoints would go past the plugin.

    By itself no Strategy, so that it can stand before the classes of both packages, see :func:`become`.
    """

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
        _unsharded(self).save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads."""
        return _unsharded(self).load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Into the module, as without sharding."""
        _unsharded(self).load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's own."""
        return _unsharded(self).optimizer_state(self, optimizer)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Into the optimizers, as without sharding."""
        _unsharded(self).load_optimizer_state_dict(self, checkpoint)


def _unsharded(strategy: Strategy) -> type[Strategy]:
    """The class whose methods do without sharding what a strategy's own would do otherwise."""
    return next(cls for cls in both(Strategy) if isinstance(strategy, cls))
