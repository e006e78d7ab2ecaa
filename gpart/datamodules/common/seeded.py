"""What the DataModules share: the order of the training rows is the run's own, also in a resumed run.

Invariant: the order of an epoch's training rows is a function of (run's seed, epoch), on any number of ranks and worker
processes; a checkpoint keeps the run's seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from gpart.datamodules.common.epoch_sampler import EpochSampler


@dataclass(frozen=True)
class TrainerProgress:
    """How far a trainer's fit is, right also where it resumes."""

    trainer: Trainer

    @property
    def epoch(self) -> int:
        """The epoch under way, from 0.

        Lightning tells samplers how many epochs are ``processed``, of which it counts one twice where a run by steps
        resumes from an epoch's end; ``completed`` is right.
        """
        return int(self.trainer.fit_loop.epoch_progress.current.completed)

    @property
    def between_epochs(self) -> bool:
        """Whether it resumes from an epoch's end, and will make another iterator before it takes a step.

        A run by steps then goes through the ended epoch once more, without a step where the iterator is at its end.
        """
        loop = self.trainer.fit_loop
        total: Any = loop.epoch_progress.total  # declared as a base of what it is
        return bool(loop._iteration_based_training() and total.completed == total.processed - 1 == total.started - 1)


class SeededDataModule(LightningDataModule):
    """A DataModule whose training rows are sampled by :class:`EpochSampler`; its hyperparameters have a ``seed``."""

    def __init__(self) -> None:
        super().__init__()
        self._run: str | None = None

    @property
    def run_seed(self) -> str:
        """The seed of ``seed_everything``, if there is one, with the DataModule's own."""
        if self._run is None:
            # As Lightning's own samplers: the launcher hands this variable to every rank.
            self._run = f"{os.environ.get('PL_GLOBAL_SEED', '')}:{self.hparams['seed']}"
        return self._run

    @property
    def epoch(self) -> int:
        """The epoch at which the trainer is."""
        # What Lightning will tell the sampler too, but only after the first iterator.
        return 0 if self.trainer is None else self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]

    @property
    def place(self) -> tuple[int, int]:
        """How many ranks there are, and which of them this is."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def sampler(self, length: int) -> EpochSampler:
        """This rank's share of the rows, from the epoch on at which the trainer is."""
        return self.follow(EpochSampler(length, self.run_seed, self.epoch, *self.place))

    def follow(self, sampler: EpochSampler) -> EpochSampler:
        """Lets a sampler ask the trainer how far it is."""
        if self.trainer is not None:
            sampler.progress = TrainerProgress(self.trainer)
        return sampler

    def loader(
        self,
        data: Sized,
        collate: Callable[[list[Any]], dict[str, Any]],
        batch_size: int,
        sampler: Sampler[Any] | None = None,
    ) -> StatefulDataLoader:
        """A loader that can be resumed within an epoch, with the module's ``num_workers``."""
        workers = self.hparams["num_workers"]
        return StatefulDataLoader(
            data,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=collate,
        )

    def state_dict(self) -> dict[str, Any]:
        """The run's seed, so that a resumed run goes on with it."""
        return {"run": self.run_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over that seed."""
        self._run = state_dict["run"]
