"""What the two operations alone cost, over D at one d and over d at one D, with stored and with computed group indices.

Invariant: every point works on the first weights of one stack, so that all have the same memory behind them, and all
points and both operations are interleaved. Expand writes W0 + P·theta into memory that is there; reduce adds all
weights' gradients to one buffer, as a backward pass does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from gpart.config import INDICES as SETTINGS
from gpart.config import MemoryPolicy
from gpart.errors import GPartError
from gpart.injection.targets import AdaptedWeight
from gpart.materialize.group_index import GroupIndex
from gpart.ops.autograd import scale
from gpart.ops.block import Block
from gpart.ops.dispatch import expand_into
from gpart.ops.sums import GroupSums
from gpart.partition import Partition
from gpart.studies.bench.checks import check_numbers
from gpart.studies.bench.settings import find_device
from gpart.studies.bench.timing import Tell, Trial, interleave, waiting_for

OPERATIONS = ("expand", "reduce")
INDICES = tuple(setting for setting in SETTINGS if setting != "auto")


@dataclass(frozen=True)
class SweepSettings:
    """The points.

    Raises:
        GPartError: if a number is outside its range, with the number.
    """

    width: int = 1024
    """Each weight is width x width."""

    weights: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 96])
    """How many weights, in the sweep over D: D = weights · width²."""

    d: int = 23_040
    """In the sweep over D."""

    at_weights: int = 16
    """How many weights in the sweep over d."""

    ds: list[int] = field(default_factory=lambda: [1, 16, 256, 4096, 23_040, 262_144, 2_097_152, 16_777_216])
    """d, in the sweep over d."""

    device: str = "auto"
    threads: int | None = None
    rounds: int = 15
    warmup: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, width=1, d=1, at_weights=1, threads=1, rounds=1, warmup=0)
        for name, most in (("weights", None), ("ds", self.at_weights * self.width**2)):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise GPartError(f"{name} must be whole numbers, 1 or more, got {values}")
            if most is not None and max(values) > most:
                raise GPartError(f"d={max(values)} is more than the {most} weights that d is swept at")
        if self.d > (size := min(self.weights) * self.width**2):
            raise GPartError(f"d={self.d} is more than the {size} weights of the smallest D")

    @property
    def points(self) -> list[tuple[int, int]]:
        """(number of weights, d) of both sweeps, each once."""
        over_size = [(count, self.d) for count in self.weights]
        return list(dict.fromkeys([*over_size, *((self.at_weights, d) for d in self.ds)]))


@dataclass(frozen=True)
class Sample:
    """One point's times."""

    size: int
    """D."""

    d: int
    kind: str
    """One of :data:`OPERATIONS`."""

    indices: str
    """One of :data:`INDICES`."""

    seconds: list[float]
    """Of one operation over all D weights, one for each round."""


def run_sweep(settings: SweepSettings, tell: Tell) -> list[Sample]:
    """Times every point.

    Args:
        settings: the points.
        tell: is called after each timed operation.

    Raises:
        GPartError: if there is no such device.
    """
    device = find_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    most = max(*settings.weights, settings.at_weights)
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (settings.width, settings.width)
    stack = [torch.randn(shape, generator=generator).mul_(0.02).to(device) for _ in range(most)]
    out = [torch.empty_like(weight) for weight in stack]
    trials: dict[str, Trial] = {}
    points: dict[str, tuple[int, int, str, str]] = {}
    for count, d in settings.points:
        size = count * settings.width**2
        scaled = scale(torch.randn(d, generator=generator).to(device), size)
        for indices in INDICES:
            blocks = make_blocks(settings, count, d, indices == "stored", device)
            operations: dict[str, Callable[[], object]] = {
                "expand": partial(expand_all, out, scaled, stack[:count], blocks),
                "reduce": partial(reduce_all, stack[:count], blocks, d),
            }
            for kind, run in operations.items():
                name = f"{kind}, {indices}, D = {size}, d = {d}"
                trials[name], points[name] = Trial(run), (size, d, kind, indices)
    samples = interleave(
        trials,
        settings.rounds,
        settings.warmup,
        settings.seed,
        synchronize=waiting_for(device),
        tell=tell,
    )
    return [Sample(*points[name], seconds) for name, seconds in samples.items()]


def make_blocks(
    settings: SweepSettings, count: int, d: int, stored: bool, device: torch.device
) -> list[tuple[Block, ...]]:
    """Each weight's blocks with their group indices, as an adapter makes them."""
    width = settings.width
    index = GroupIndex(Partition(count * width**2, d, settings.seed), MemoryPolicy("stored" if stored else "computed"))
    weights = [
        AdaptedWeight(f"{number}.weight", (width, width), 0, ((0, width, number * width**2),), ())
        for number in range(count)
    ]
    return [index.build(weight, device) for weight in weights]


def expand_all(out: list[Tensor], scaled: Tensor, stack: list[Tensor], blocks: list[tuple[Block, ...]]) -> None:
    """W0 + P·theta of every weight, into the first tensors of ``out``."""
    for target, weight, block in zip(out, stack, blocks, strict=False):
        expand_into(target, scaled, weight, block)


def reduce_all(grads: list[Tensor], blocks: list[tuple[Block, ...]], d: int) -> Tensor:
    """The sums over groups of all weights' gradients, as a backward pass takes them; shape (d,)."""
    sums = GroupSums(d, grads[0].device)
    for grad, block in zip(grads, blocks, strict=True):
        sums.add(grad, block)
    return sums.total(torch.float32)
