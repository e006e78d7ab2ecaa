"""One part of a bench: its contestants take turns on a device, and what comes out are their times."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from gpart.studies.bench.settings import FLOOR, FROZEN, Method
from gpart.studies.bench.steps import PROMPT, Contestant, enter, make_batch
from gpart.studies.bench.subject import Subject
from gpart.studies.bench.timing import Trial, interleave, waiting_for

Tell = Callable[[str, int, int], None]
"""Is told what is measured, how many of its steps are done, and of how many."""


@dataclass(frozen=True)
class Timing:
    """The times of one part on one shape."""

    part: str
    """``inject``, ``train``, ``eval`` or ``generate``; where launching is measured ``forward`` too."""

    title: str
    """The part and its shape, such as ``train 8x64``."""

    reference: str | None
    """The method whose times the others' are compared with."""

    samples: dict[str, list[float]]
    """Seconds by method, one for each round: of a step, or of a generated token."""


@dataclass(frozen=True)
class Turns:
    """How contestants are timed.

    Attributes:
        device: where they are; it is waited for.
        rounds: how many are timed.
        warmup: rounds before them.
        seed: of the weights, the tokens and the order.
        tell: is called after each trial.
    """

    device: torch.device
    rounds: int
    warmup: int
    seed: int
    tell: Tell

    def time(self, trials: dict[str, Trial], part: str, title: str, reference: str | None = None) -> Timing:
        """Times every trial once in each round; the other arguments are :class:`Timing`'s."""
        samples = interleave(
            trials,
            self.rounds,
            self.warmup,
            self.seed,
            synchronize=waiting_for(self.device),
            tell=partial(self.tell, title),
        )
        return Timing(part, title, reference, samples)


def training(
    turns: Turns, subject: Subject, contestants: Sequence[Contestant], shape: tuple[int, int], reference: str
) -> Timing:
    """Seconds per training step, its optimizer's included."""
    batches = [make_batch(subject, shape, turns.seed, turns.device)]
    trials = {one.method.text: Trial(partial(one.train_step, batches)) for one in contestants}
    return turns.time(trials, "train", f"train {name_shape(shape)}", reference)


def evaluation(
    turns: Turns, subject: Subject, contestants: Sequence[Contestant], shapes: Sequence[tuple[int, int]]
) -> Iterator[Timing]:
    """Seconds per forward pass without gradients, a timing for each shape.

    The floor is left out: it evaluates the frozen model, as full fine-tuning does, which stays and shows the noise.
    """
    compared = [one for one in contestants if one.method.kind != FLOOR]
    with _evaluating(compared):
        for shape in shapes:
            batch = make_batch(subject, shape, turns.seed, turns.device)
            trials = {one.method.text: Trial(partial(one.evaluate, batch)) for one in compared}
            yield turns.time(trials, "eval", f"eval {name_shape(shape)}", FROZEN)


def generation(turns: Turns, generator: Subject, methods: Sequence[Method], new_tokens: int) -> Timing:
    """Seconds per new token, the frozen model among the methods."""
    base = generator.build(turns.device, turns.seed)
    contestants = [enter(method, generator, base) for method in methods]
    batch = make_batch(generator, (1, PROMPT), turns.seed, turns.device)
    with _evaluating(contestants):
        trials = {one.method.text: Trial(partial(one.generate, batch, new_tokens)) for one in contestants}
        timing = turns.time(trials, "generate", f"generate {generator.name}", FROZEN)
    per_token = {name: [seconds / new_tokens for seconds in times] for name, times in timing.samples.items()}
    return dataclasses.replace(timing, samples=per_token)


def name_shape(shape: tuple[int, int]) -> str:
    """As a user types it.

    Example:
        >>> name_shape((8, 64))
        '8x64'
    """
    batch, tokens = shape
    return f"{batch}x{tokens}"


@contextmanager
def _evaluating(contestants: Sequence[Contestant]) -> Iterator[None]:
    """Has them in eval mode, and GPart within ``cached()``, as its callback does."""
    with ExitStack() as stack:
        for one in contestants:
            one.model.eval()
            if one.adapter is not None:
                stack.enter_context(one.adapter.cached())
        yield
