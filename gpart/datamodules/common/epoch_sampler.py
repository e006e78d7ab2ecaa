"""The order of training rows, which also carries the epoch to the worker processes.

Invariant: the order is a function of (seed, epoch); every rank takes its share of that one order, and each key says which
epoch it is of, so that persistent workers, prefetched batches and resumed iterators can't be of another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DistributedSampler

Key = tuple[int, int]
"""Epoch and position."""


class Progress(Protocol):
    """How far a trainer is."""

    @property
    def epoch(self) -> int:
        """The epoch under way, from 0."""

    @property
    def between_epochs(self) -> bool:
        """Whether it resumes from an epoch's end, and will make another iterator before it takes a step."""


class EpochSampler(DistributedSampler[Key]):
    """Yields (epoch, position) in an order of its own for each epoch.

    It is a DistributedSampler, also on one rank, so that Lightning leaves it in place and tells it each new epoch by
    ``set_epoch``; Lightning does that only after it has made the first iterator, so the first epoch is an argument.

    Args:
        length: how many positions there are.
        seed: the run's.
        epoch: the first epoch, from 0.
        ranks: how many processes share the rows; some rows come twice where they can't be shared evenly.
        rank: which of them this is.
    """

    def __init__(self, length: int, seed: str, epoch: int = 0, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(range(length), num_replicas=ranks, rank=rank)  # type: ignore[arg-type]  # it has a length
        self.length, self.run, self.epoch = length, seed, epoch
        self.progress: Progress | None = None

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iterator is of; the trainer's own count goes before the argument, where it is known."""
        self.epoch = epoch if self.progress is None else self.progress.epoch

    def __iter__(self) -> Iterator[Key]:
        return _Keys(self, self.epoch)

    def order(self, epoch: int) -> list[int]:
        """This rank's positions in an epoch."""
        return self.whole(epoch)[self.rank : self.total_size : self.num_replicas]

    def whole(self, epoch: int) -> list[int]:
        """All ranks' positions in an epoch, dealt out one by one."""
        whole = torch.randperm(self.length, generator=self.generator(epoch, "order")).tolist()
        while len(whole) < self.total_size:  # as torch's own: from the front again
            whole += whole[: self.total_size - len(whole)]
        return whole

    def generator(self, epoch: int, use: str) -> torch.Generator:
        """Random numbers of the run's and the epoch's own, for one use."""
        digest = hashlib.sha256(f"{self.run}:{epoch}:{use}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


class _Keys(Iterator[Key]):
    """An epoch's keys; StatefulDataLoader keeps its state in checkpoints."""

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
            # From a checkpoint of an epoch's last step Lightning goes on without making a new iterator: with this one
            # at its end, it would take the next epoch for an empty one and leave it out.
            self.epoch, self.yielded = self.epoch + 1, 0
        self.order = self.sampler.order(self.epoch)
