"""Batches of examples of like length, so that little of a batch is padding.

Invariant: the order is a function of (run's seed, epoch, examples in a step on all ranks); the ranks' k-th batches are
parts of one and the same group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpart.datamodules.common.epoch_sampler import EpochSampler

MEGABATCH = 50
"""Steps among whose examples those of like length are put together: enough to find them, and still a random order."""


class LengthGroupedSampler(EpochSampler):
    """Shuffles, sorts by length within stretches of 50 steps, cuts those into steps and shuffles the steps.

    Args:
        lengths: each example's.
        batch_size: examples a step and rank.
        seed: the run's.
        epoch: the first epoch, from 0.
        ranks: how many processes share the examples.
        rank: which of them this is.

    Example:
        >>> sampler = LengthGroupedSampler([5, 1, 4, 2, 6, 3], batch_size=2, seed="0")
        >>> order = [at for _, at in sampler]
        >>> sorted(sorted([order[0], order[1]]) for order in (order[:2], order[2:4], order[4:]))
        [[0, 4], [1, 3], [2, 5]]
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: str, epoch: int = 0, ranks: int = 1, rank: int = 0
    ) -> None:
        super().__init__(len(lengths), seed, epoch, ranks, rank)
        self.lengths, self.step = lengths, batch_size * ranks

    def whole(self, epoch: int) -> list[int]:
        """All ranks' positions in an epoch. Dealt out one by one, each step's go to the ranks' batches of that step."""
        shuffled, stretch = super().whole(epoch), MEGABATCH * self.step
        order: list[int] = []
        for start in range(0, len(shuffled), stretch):
            order += sorted(shuffled[start : start + stretch], key=lambda at: -self.lengths[at])
        full = len(order) // self.step
        steps = torch.randperm(full, generator=self.generator(epoch, "steps")).tolist()
        # A last step with fewer examples stays the last: elsewhere it would shift the borders of all that follow.
        return [at for step in [*steps, full] for at in order[step * self.step : (step + 1) * self.step]]
