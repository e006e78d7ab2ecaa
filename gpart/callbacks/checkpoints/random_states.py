"""The random numbers of training, so that a resumed run draws what the uninterrupted one would have drawn.

Invariant: the numbers that training steps draw go on from one step to the next, in one process and over a checkpoint;
what a validation draws in between is taken back. From the second epoch on, the loader's iterator draws from the state S
after the last step, and the epoch's first step from :func:`reseed` (S). So no two epochs draw the same, also where no step draws.

All of it is needed for equality. A run that resumes within an epoch makes an iterator that the uninterrupted run made long
ago, a run that resumes from an epoch's last step may make none, and one that resumes from a step after which a
validation was due leaves the validation out (lightning/pytorch/loops, fit_loop.py and training_epoch_loop.py). An
iterator draws the seed of its workers, and in other people's loaders the order of the rows, from the same generator as
dropout does.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn

from gpart.callbacks.packages import OfBoth, is_a

State = dict[str, Any]
"""The states of one process's generators, as what a checkpoint may hold."""


class RandomStates(OfBoth, Callback):
    """Keeps every rank's random states (torch's, the device's, Python's, numpy's) in checkpoints, and puts them back.

    The method's callback puts it in where the user has not. With it, a run resumed from any of its checkpoints ends, bit
    for bit on CPU, as the uninterrupted run, if its loader is resumable (``StatefulDataLoader``; those of
    :mod:`gpart.datamodules` are). Not promised for data sets that draw random numbers in the training process.

    Ten kilobytes a rank. On another number of ranks the states are left out, with a warning.
    """

    def __init__(self) -> None:
        self._state: State | None = None
        self._loaded: dict[int, State | None] | None = None
        self._resumed = self._alone = self._warned = False
        self._rank, self._ranks = 0, 1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets an earlier fit."""
        self._rank, self._ranks = trainer.global_rank, trainer.world_size
        if stage == "fit":
            self._state = self._loaded = None
            self._resumed = self._alone = self._warned = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the loader is made, whose first iterator serves a run that resumes from an epoch's end.

        What was loaded holds if it is for these ranks.
        """
        states, self._loaded = self._loaded, None
        if states is None:
            return
        self._resumed = sorted(states) == list(range(self._ranks))
        self._state = states[self._rank] if self._resumed else None
        if not self._resumed:
            rank_zero_warn(
                f"the checkpoint holds the random states of ranks {sorted(states)}, and this run has {self._ranks} ranks:"
                " dropout will draw other numbers than it would have without the interruption"
            )
        self._rewind(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """So that what the epoch's iterator draws is the same in a resumed run."""
        loop = trainer.fit_loop
        # The other package may be older than Lightning 2.6, as darts asks for, and says it by another name.
        resuming = loop.is_resuming if hasattr(loop, "is_resuming") else loop.restarting
        if not resuming:  # else the iterator is made already, see training_epoch_loop.on_run_start
            self._rewind(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """So that it does not matter how many iterators were made on the way, nor whether a step draws anything."""
        if batch_idx == 0 or self._resumed:
            self._rewind(trainer)
            self._resumed = False
        if batch_idx == 0 and self._state is not None:
            reseed()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Where the next step goes on."""
        self._state = read(trainer.strategy.root_device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """So that it does not matter whether a validation was made."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._rewind(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """From here on the other ranks may not answer: a checkpoint then holds this one's states only."""
        self._alone = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Warns, once, where the loader could not go on from here: better known now than when the run is resumed."""
        loop = trainer.fit_loop.epoch_loop
        begun = loop.batch_progress.current.ready
        if self._warned or begun == 0 or loop._is_training_done:  # of the epoch's batches, or of max_steps
            return
        combined = trainer.fit_loop._combined_loader
        loaders = [] if combined is None else combined.flattened
        if fixed := [type(loader).__name__ for loader in loaders if not hasattr(loader, "load_state_dict")]:
            self._warned = True
            rank_zero_warn(
                f"this checkpoint is from the middle of an epoch (after {begun} batches), and the"
                f" training loader ({fixed[0]}) cannot be resumed there: a run that goes on from it sees other batches"
                " than it would have without the interruption. Take torchdata's StatefulDataLoader, or the checkpoints"
                " of epochs' ends"
            )

    def state_dict(self) -> dict[str, Any]:
        """Every rank's states by rank; called on all of them, as all of a checkpoint's saving."""
        if self._ranks == 1 or self._alone or not torch.distributed.is_initialized():
            return {"states": {self._rank: self._state}}
        states: list[State | None] = [None] * self._ranks
        torch.distributed.all_gather_object(states, self._state)
        return {"states": dict(enumerate(states))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over this rank's states, from the first step on."""
        self._loaded = state_dict["states"]

    def _rewind(self, trainer: Trainer) -> None:
        if self._state is not None:
            write(self._state, trainer.strategy.root_device)


def install_random_states(trainer: Trainer) -> None:
    """Puts a :class:`RandomStates` behind the trainer's other callbacks, before those that write checkpoints."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
    if any(isinstance(callback, RandomStates) for callback in callbacks):
        return
    made = RandomStates()
    made._rank, made._ranks = trainer.global_rank, trainer.world_size
    at = next((index for index, item in enumerate(callbacks) if is_a(item, Checkpoint)), len(callbacks))
    # A new list: Lightning may be iterating over the present one.
    trainer.callbacks = [*callbacks[:at], made, *callbacks[at:]]  # type: ignore[attr-defined]


def read(device: torch.device) -> State:
    """The present states of torch's generators (the CPU's and the device's), Python's and numpy's.

    Example:
        >>> state = read(torch.device("cpu"))
        >>> first = torch.rand(2), random.random(), np.random.rand()
        >>> write(state, torch.device("cpu"))
        >>> first[0].equal(torch.rand(2)), first[1:] == (random.random(), np.random.rand())
        (True, True)
    """
    kind, key, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # the generator that others draw from
    state: State = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(key).view(np.int32).copy()), *rest),
    }
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def reseed() -> None:
    """Seeds the generators of torch on the CPU, of Python and of numpy with numbers that they draw.

    The first numbers of torch are left out: an iterator takes them as seeds of its workers and of its order.

    Example:
        >>> state = read(torch.device("cpu"))
        >>> seeds = torch.initial_seed(), reseed(), torch.initial_seed(), reseed(), torch.initial_seed()
        >>> len(set(seeds) - {None})
        3
        >>> write(state, torch.device("cpu"))
    """
    torch.default_generator.manual_seed(int(torch.empty(8, dtype=torch.int64).random_()[-1]))
    random.seed(random.getrandbits(256))
    np.random.seed(np.random.randint(2**32, size=8, dtype=np.uint32))  # noqa: NPY002  # the one that others draw from


def write(state: State, device: torch.device) -> None:
    """Puts states back that :func:`read` gave; a kind of device that they lack is left as it is."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, key.numpy().view(np.uint32), *rest))  # noqa: NPY002
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type])
