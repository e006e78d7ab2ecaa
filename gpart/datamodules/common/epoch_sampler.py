"""The sampler of the training rows. Its keys carry the epoch to the worker processes.

Invariant: the order of the rows is a function of (seed, epoch), and every rank takes its share of that order. Each
key holds its epoch. So persistent workers, prefetched batches and resumed iterators can't mix epochs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DistributedSampler

Key = tuple[int, int]
"""The epoch, and the position of a row."""


class Progress(Protocol):
    """How far the trainer is."""

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 0."""

    @property
    def between_epochs(self) -> bool:
        """Whether the trainer resumes at an epoch's end, and will make a new iterator before it takes a step."""


class EpochSampler(DistributedSampler[Key]):
    """Yields pairs (epoch, position), in a new random order for each epoch.

    It is a DistributedSampler, even on one rank: Lightning then leaves it in place and calls its ``set_epoch`` for each
    new epoch. Lightning makes the first iterator before it calls ``set_epoch``, so that the first epoch is an argument.

    Args:
        length: the number of rows.
        seed: the run's seed.
        epoch: the first epoch, counted from 0.
        ranks: the number of processes that share the rows. Where they can't be shared evenly, some rows come twice.
        rank: the number of this process.
    """

    def __init__(self, length: int, seed: str, epoch: int = 0, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(range(length), num_replicas=ranks, rank=rank)  # type: ignore[arg-type]  # it has a length
        self.length, self.run, self.epoch = length, seed, epoch
        self.progress: Progress | None = None

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iterator: the trainer's own count if it is known, else the argument."""
        self.epoch = epoch if self.progress is None else self.progress.epoch

    def __iter__(self) -> Iterator[Key]:
        return _Keys(self, self.epoch)

    def order(self, epoch: int) -> list[int]:
        """This rank's positions in an epoch, in order."""
        return self.whole(epoch)[self.rank : self.total_size : self.num_replicas]

    def whole(self, epoch: int) -> list[int]:
        """The positions of all ranks in an epoch: rank 0 takes the first, rank 1 the second, and so on in turn."""
        whole = torch.randperm(self.length, generator=self.generator(epoch, "order")).tolist()
        while len(whole) < self.total_size:  # as torch's DistributedSampler does: start from the front again
            whole += whole[: self.total_size - len(whole)]
        return whole

    def generator(self, epoch: int, use: str) -> torch.Generator:
        """A random generator for one purpose (``use``), seeded from the run's seed and the epoch."""
        digest = hashlib.sha256(f"{self.run}:{epoch}:{use}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


class _Keys(Iterator[Key]):
    """Iterates over the keys of one epoch. StatefulDataLoader keeps its state in checkpoints."""

    def __init__(self, sampler: EpochSampler, epoch: int) -> None:
        self.sampler = sampler
        self.epoch, self.yielded = epoch, 0
        self.order = sampler.order(epoch)

    def __next__(self) -> Key:
        if self.yielded >= len(self.order):
            raise StopIteration
        self.yielded += 1
        return self.epoch, self.order[self.yielded - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "yielded": self.yielded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.yielded = state["epoch"], state["yielded"]
        progress = self.sampler.progress
        if self.yielded >= len(self.order) and not (progress and progress.between_epochs):
            # After loading a checkpoint of an epoch's last step, Lightning goes on with this iterator. If it were at
            # its end, Lightning would take the next epoch for an empty one and skip it.
            self.epoch, self.yielded = self.epoch + 1, 0
        self.order = self.sampler.order(self.epoch)
