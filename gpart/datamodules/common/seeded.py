"""The base class of the DataModules: the order of the training rows is reproducible, and a run can be resumed.

Invariant: the order of an epoch's training rows is a function of (run's seed, epoch), for any number of ranks and of
worker processes. A checkpoint keeps the run's seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeVar

from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from gpart.datamodules.common.epoch_sampler import EpochSampler
from gpart.datamodules.common.length_groups import LengthGroupedSampler, scoring_order
from gpart.errors import GPartError

T = TypeVar("T")


def check_loading(num_workers: int, **sizes: int) -> None:
    """Checks the settings of the data loaders, before any data is read.

    Args:
        num_workers: must be 0 or more.
        sizes: settings that must be 1 or more, by name.

    Raises:
        GPartError: if a setting is out of its range.

    Example:
        >>> check_loading(num_workers=0, batch_size=0)
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: batch_size must be at least 1, got 0
    """
    if num_workers < 0:
        raise GPartError(f"num_workers must be at least 0, got {num_workers}")
    for name, size in sizes.items():
        if size < 1:
            raise GPartError(f"{name} must be at least 1, got {size}")


@dataclass(frozen=True)
class TrainerProgress:
    """How far a trainer's fit is. It is also right when the fit is resumed."""

    trainer: Trainer

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 0.

        Lightning itself gives samplers the number of ``processed`` epochs. If a run with ``max_steps`` resumes at an
        epoch's end, Lightning counts that epoch twice there. The number of ``completed`` epochs is right.
        """
        return int(self.trainer.fit_loop.epoch_progress.current.completed)

    @property
    def between_epochs(self) -> bool:
        """Whether the trainer resumes at an epoch's end, and will make a new iterator before it takes a step.

        A run with ``max_steps`` then goes through the finished epoch once more; it takes no step if the iterator is at
        its end.
        """
        loop = self.trainer.fit_loop
        total: Any = loop.epoch_progress.total  # Lightning declares it with a base class
        return bool(loop._iteration_based_training() and total.completed == total.processed - 1 == total.started - 1)


class SeededDataModule(LightningDataModule):
    """A DataModule whose training rows are sampled by :class:`EpochSampler`.

    A subclass saves the hyperparameters ``seed`` and ``num_workers``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._run: str | None = None

    @property
    def run_seed(self) -> str:
        """The run's seed: the seed of ``seed_everything``, if it was called, together with the DataModule's own."""
        if self._run is None:
            # seed_everything sets this variable, and the launcher passes it to every rank.
            self._run = f"{os.environ.get('PL_GLOBAL_SEED', '')}:{self.hparams['seed']}"
        return self._run

    @property
    def epoch(self) -> int:
        """The trainer's current epoch, counted from 0."""
        if self.trainer is None:
            return 0
        # The number that Lightning passes to the sampler's set_epoch, but only after the first iterator is made.
        processed: int = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        return processed

    @property
    def place(self) -> tuple[int, int]:
        """The number of ranks, and the number of this rank."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def sampler(self, length: int) -> EpochSampler:
        """The sampler of this rank's share of the rows, starting with the trainer's current epoch."""
        return self.follow(EpochSampler(length, self.run_seed, self.epoch, *self.place))

    def grouped_sampler(self, lengths: Sequence[int]) -> EpochSampler:
        """The same, with rows of similar length in a batch of ``batch_size`` (a hyperparameter)."""
        size = self.hparams["batch_size"]
        return self.follow(LengthGroupedSampler(lengths, size, self.run_seed, self.epoch, *self.place))

    def scoring_order(self, lengths: Sequence[int]) -> list[int]:
        """The rows of all ranks, those of similar length in a batch. Lightning gives each rank its share of a plain order."""
        return scoring_order(lengths, self.hparams["batch_size"] * self.place[0])

    def follow(self, sampler: EpochSampler) -> EpochSampler:
        """Connects a sampler to the trainer, so that it knows the current epoch, and returns it."""
        if self.trainer is not None:
            sampler.progress = TrainerProgress(self.trainer)
        return sampler

    def base_model(self, default: str | None = None) -> str:
        """The model whose tokenizer or image settings are used: the setting ``model``, else the LightningModule's.

        It is then the setting, since Lightning's loggers refuse a hyperparameter that differs between the two.

        Args:
            default: where neither names one.

        Raises:
            GPartError: if neither names one, and there is no default.
        """
        module = None if self.trainer is None else self.trainer.lightning_module
        name = self.hparams["model"] or (None if module is None else module.hparams.get("model"))
        if not isinstance(name, str) and default is not None:
            name = default
        if not isinstance(name, str):
            raise GPartError(
                f"model={self.hparams['model']} of the data, and the LightningModule's is {name}: name one"
            )
        if name != self.hparams["model"]:
            self.save_hyperparameters({"model": name})
        return name

    def on_one_rank(self, make: Callable[[], T]) -> T:
        """Calls a function on the first rank alone and returns its result on every rank. The function must not raise."""
        if self.trainer is None:
            return make()
        result: T = self.trainer.strategy.broadcast(make() if self.trainer.is_global_zero else None)  # type: ignore[assignment]
        return result

    def loader(
        self,
        data: Sized,
        collate: Callable[[list[Any]], dict[str, Any]],
        batch_size: int,
        sampler: Sampler[Any] | Sequence[int] | None = None,
    ) -> StatefulDataLoader:
        """A data loader that can be resumed within an epoch, with ``num_workers`` from the hyperparameters."""
        workers = self.hparams["num_workers"]
        return StatefulDataLoader(
            data,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            # Else Lightning's copies to the GPU wait.
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            collate_fn=collate,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the run's seed, so that a resumed run goes on with it."""
        return {"run": self.run_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the run's seed from a checkpoint."""
        self._run = state_dict["run"]
