"""``last.ckpt``: the last state of a run, of any recipe, and also of a run that was stopped in the middle of an epoch.

Lightning's ``save_last`` is no more than a copy of the last checkpoint that was kept: with a monitor, of the last
improvement. What ``gpart fit --resume`` goes on from has to be the last state, so that the CLI writes it itself.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info

from gpart.callbacks.sharding.strategies import shards
from gpart.errors import GPartError
from gpart.serialization.locations import is_file, is_folder, located


class LastState(ModelCheckpoint):
    """Writes ``last.ckpt`` at the end of every epoch, and when a run is stopped (Ctrl-C, SIGTERM, an error).

    Not after a :class:`GPartError`: what was refused, such as a theta that is not finite, is nothing to go on from. Not
    in the middle of an epoch under a strategy that shards the model either, since all processes would have to take part.

    Args:
        dirpath: the folder; default that of the run.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        super().__init__(
            dirpath,
            filename=self.CHECKPOINT_NAME_LAST,
            save_on_exception=True,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the state that the run was stopped in."""
        fitting = trainer.state.fn == TrainerFn.FITTING and self._should_save_on_exception(trainer)
        if not fitting or isinstance(exception, GPartError) or shards(trainer.strategy):
            return
        path = self.format_checkpoint_name({})
        # Not Trainer.save_checkpoint, which waits for all processes: another may have ended, or wait in a collective.
        trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(weights_only=False), path)
        rank_zero_info(
            f"stopped after step {trainer.global_step}, written to {path}: gpart fit --resume goes on from there"
        )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lets the run's keepers know the best before it was stopped: Lightning forgets its score in a new run's folder."""
        states = checkpoint.get("callbacks") or {}
        for keeper in trainer.checkpoint_callbacks:
            state = states.get(keeper.state_key)
            if isinstance(keeper, ModelCheckpoint) and isinstance(state, dict) and keeper.monitor:
                best = located(state.get("best_model_path") or "")
                if is_file(best) or is_folder(best):  # sharded ones are folders
                    state["dirpath"] = keeper.dirpath

    def state_dict(self) -> dict[str, Any]:
        """Nothing, so that Lightning does not ask another Trainer, which reads the file, for this callback."""
        return {}


def with_last_state(callbacks: list[Callback]) -> list[Callback]:
    """A run's callbacks, and the one that writes ``last.ckpt`` where their ``save_last`` would; it takes its place."""
    keepers = [one for one in callbacks if isinstance(one, ModelCheckpoint)]
    if not keepers:  # Lightning would add this one, but not beside another
        return [*callbacks, ModelCheckpoint(), LastState()]
    keeper = next((one for one in keepers if one.save_last), keepers[0])
    # Both would write one file; and a link, which save_last can be, leads to another.
    keeper.save_last = None
    return [*callbacks, LastState(None if keeper.dirpath is None else str(keeper.dirpath))]
