"""Batches of examples of similar length, so that little of a batch is padding.

Invariant: the order is a function of (run's seed, epoch, number of examples in a step on all ranks); where examples are
scored, of the last alone. In each step, the examples of all ranks have similar lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpart.datamodules.common.epoch_sampler import EpochSampler

MEGABATCH = 50
"""The number of steps whose examples are sorted by length together. It is large enough to find examples of similar
length, and small enough to keep the order random."""


class LengthGroupedSampler(EpochSampler):
    """Yields the examples so that those of one step have similar lengths.

    It shuffles all examples, sorts them by length within stretches of 50 steps, cuts the result into steps, and
    shuffles the steps.

    Args:
        lengths: the length of each example.
        batch_size: examples per step and rank.
        seed: the run's seed.
        epoch: the first epoch, counted from 0.
        ranks: the number of processes that share the examples.
        rank: the number of this process.

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
        """The positions of all ranks in an epoch. The ranks take them in turn, and so share each step's examples."""
        shuffled, stretch = super().whole(epoch), MEGABATCH * self.step
        order: list[int] = []
        for start in range(0, len(shuffled), stretch):
            order += sorted(shuffled[start : start + stretch], key=lambda at: -self.lengths[at])
        return _mixed(order, self.step, self.generator(epoch, "steps"))


def scoring_order(lengths: Sequence[int], step: int) -> list[int]:
    """The positions of the examples so that those of one step have similar lengths, where nothing is trained.

    It is the same in every run and epoch, so that the same weights have the same score. The steps are in no order of
    length, so that the first few of them (``limit_val_batches``) stand for all.

    Args:
        lengths: the length of each example.
        step: examples per step, on all ranks together.

    Example:
        >>> order = scoring_order([5, 1, 4, 2, 6, 3], step=2)
        >>> sorted(sorted(one) for one in (order[:2], order[2:4], order[4:]))
        [[0, 4], [1, 3], [2, 5]]
    """
    order = sorted(range(len(lengths)), key=lambda at: -lengths[at])
    return _mixed(order, step, torch.Generator().manual_seed(0))


def _mixed(order: Sequence[int], step: int, generator: torch.Generator) -> list[int]:
    """The order cut into steps, and these shuffled."""
    full = len(order) // step
    steps = torch.randperm(full, generator=generator).tolist()
    # A last step with fewer examples stays last. Anywhere else it would shift the borders of all later steps.
    return [at for one in [*steps, full] for at in order[one * step : (one + 1) * step]]
