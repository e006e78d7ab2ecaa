"""What is written when fit ends: the best checkpoint's numbers, where a score chose one, or those of the last step.

Invariant: what is scored is what is saved. Where the trainer keeps a best checkpoint, and ``--test_best`` scores that, the
folder holds its numbers bit for bit, and says of which step and score they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from gpart.adapter import GPartAdapter
from gpart.callbacks.checkpoints.contents import TrainedContents
from gpart.callbacks.checkpoints.live import plain_state
from gpart.callbacks.packages import is_a
from gpart.errors import GPartError
from gpart.injection.modules import theta_key
from gpart.serialization.checkpoint_file import adapter_in, entries_in, load_checkpoint_file, tensors_in
from gpart.serialization.folder import write_folder

Save = Literal["best", "last"]


@dataclass(frozen=True)
class Best:
    """The best checkpoint of a run."""

    path: str
    monitor: str
    value: float

    def score(self, step: int) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"step": step, "monitor": self.monitor, "value": self.value}


def check_save(save: Save | None, folder: str | None) -> None:
    """Checks the settings with each other.

    Raises:
        GPartError: if the value is unknown, or there is nothing to save.
    """
    if save not in (None, "best", "last"):
        raise GPartError(f"save must be 'best' or 'last', got {save!r}")
    if save is not None and folder is None:
        raise GPartError(f"save={save!r} says what save_folder is to hold, and save_folder is None")


def keeper_of(trainer: Trainer) -> Any:
    """The first ModelCheckpoint that keeps the best by a score, of either package; or None."""
    every: list[Any] = trainer.checkpoint_callbacks
    return next((one for one in every if is_a(one, ModelCheckpoint) and one.monitor and one.save_top_k != 0), None)


def check_keeper(trainer: Trainer, save: Save | None) -> None:
    """Checks, before training, that there will be a best checkpoint where one was asked for.

    Raises:
        GPartError: if not.
    """
    if save == "best" and keeper_of(trainer) is None:
        found = [type(one).__name__ for one in trainer.checkpoint_callbacks]
        raise GPartError(
            f"save='best' needs a ModelCheckpoint with a monitor, the trainer has {found} without one: give it, as"
            " ModelCheckpoint(monitor='val/loss'), or save='last'"
        )


def best_of(trainer: Trainer, save: Save | None) -> Best | None:
    """The best checkpoint, if that is what is to be saved; the same on every rank."""
    keeper = None if save == "last" else keeper_of(trainer)
    if keeper is None:
        return None
    path = str(keeper.best_model_path)
    if not path or keeper.best_model_score is None:
        rank_zero_warn(f"no checkpoint was kept by {keeper.monitor!r}: what is saved is the last step's")
        return None
    return Best(path, keeper.monitor, float(keeper.best_model_score))


def save(
    trainer: Trainer,
    folder: str,
    choice: Save | None,
    write_best: Callable[[dict[str, Any], Best], None],
    write_last: Callable[[], None],
) -> None:
    """Writes a folder when fit ends; every rank has to call it.

    Where nobody asked for the best, and its file does not give back what was trained (a plugin's place that nothing else
    can read, a module that renames what it saves), the last step's is written, with a warning.

    Args:
        trainer: at the end of fit.
        folder: where.
        choice: the user's.
        write_best: writes what a checkpoint holds; called on the first rank only.
        write_last: writes what there is now; called on every rank.

    Raises:
        GPartError: if the best was asked for and cannot be had.
    """
    best = best_of(trainer, choice)
    if best is not None:
        why_not = None
        if trainer.is_global_zero:
            try:
                checkpoint = load_checkpoint_file(best.path)
                write_best(checkpoint, best)
                rank_zero_info(
                    f"saved to {folder}: the best, step {checkpoint['global_step']}, {best.monitor} {best.value:.4g}"
                )
            except GPartError as error:
                why_not = str(error)
        if not (why_not := trainer.strategy.broadcast(why_not)):  # the ranks must go one way
            return
        if choice == "best":
            raise GPartError(f"{folder} was to hold the best checkpoint, and {why_not}")
        rank_zero_warn(f"{why_not}: {folder} holds the last step's numbers instead")
    write_last()
    rank_zero_info(f"saved to {folder}: the last, step {trainer.global_step}")


def save_adapter(trainer: Trainer, adapter: GPartAdapter, folder: str, choice: Save | None) -> None:
    """Writes an adapter's folder.

    Raises:
        GPartError: as :func:`save`; if theta is not finite.
    """

    def write_best(checkpoint: dict[str, Any], best: Best) -> None:
        manifest, tensors = adapter_in(checkpoint, best.path, adapter.name)
        needed = {theta_key(adapter.name), *adapter.plan.saved}
        _check_held(needed, tensors, best)
        # A checkpoint has every buffer, a folder those that training changed.
        others = adapter.snapshot.changed({name: value for name, value in tensors.items() if name not in needed})
        about = replace(manifest.about, score=best.score(int(checkpoint["global_step"])))
        write_folder(folder, replace(manifest, about=about), {**{name: tensors[name] for name in needed}, **others})

    def write_last() -> None:
        adapter.about = replace(adapter.about, score={"step": trainer.global_step})
        if adapter.sharded:  # all ranks gather what is in parts
            adapter.save(folder, write=trainer.is_global_zero)
        elif trainer.is_global_zero:
            adapter.save(folder)

    save(trainer, folder, choice, write_best, write_last)


def save_trained(
    trainer: Trainer,
    contents: TrainedContents,
    folder: str,
    choice: Save | None,
    write: Callable[[dict[str, Tensor], dict[str, Any]], None],
) -> None:
    """Writes the folder of a method that trains some of the network's own parameters.

    Args:
        trainer: at the end of fit.
        contents: the network and what of it is trained.
        folder: where.
        choice: the user's.
        write: takes the tensors by their names in the network, and the score.

    Raises:
        GPartError: as :func:`save`.
    """
    live, frozen = plain_state(contents.model), contents.frozen_keys()
    own = {name: value.detach() for name, value in live.items() if name not in frozen and isinstance(value, Tensor)}

    def write_best(checkpoint: dict[str, Any], best: Best) -> None:
        tensors = tensors_in(entries_in(checkpoint, best.path)[0], checkpoint, best.path)
        _check_held(set(own), tensors, best)
        write({name: tensors[name] for name in own}, best.score(int(checkpoint["global_step"])))

    def write_last() -> None:
        if trainer.is_global_zero:
            write(own, {"step": trainer.global_step})

    save(trainer, folder, choice, write_best, write_last)


def _check_held(needed: set[str], tensors: Mapping[str, Tensor], best: Best) -> None:
    if missing := sorted(needed - set(tensors)):
        raise GPartError(f"{best.path} holds no {missing[0]}")
