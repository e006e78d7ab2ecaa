"""The parts of a bench, one after the other: memory, injection, training, evaluation, generation.

Invariant: what can be wrong is found by :func:`prepare` before anything is measured. The contestants of a part are in
memory together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from gpart import GPartAdapter
from gpart.errors import GPartError
from gpart.studies.bench.heap import keep_freed_memory
from gpart.studies.bench.memory import FREED, Peak, measure_peak
from gpart.studies.bench.settings import FLOOR, FROZEN, FULL, GPART, Method, Settings, find_device
from gpart.studies.bench.steps import PROMPT, enter, make_batch
from gpart.studies.bench.subject import Subject, apply, count_trained, find_subject
from gpart.studies.bench.timing import Trial
from gpart.studies.bench.turns import Tell, Timing, Turns, evaluation, generation, name_shape, training

GROUPS = "group indices"
"""The trial of computing a stored index, behind a GPart method's name."""


@dataclass
class Result:
    """All that was measured so far."""

    settings: Settings
    subject: Subject
    generator: Subject | None
    """What generates, where that is measured."""

    device: torch.device
    trained: dict[str, int]
    """By method, the numbers that it trains beside the head."""

    timings: list[Timing] = field(default_factory=list)
    peaks: list[Peak] = field(default_factory=list)

    heap_kept: bool = False
    """Whether freed memory stayed with the process while steps were timed."""


def prepare(settings: Settings) -> Result:
    """Checks the settings against the models, without weights: every method is applied on the meta device.

    Raises:
        GPartError: if a model, a method, a shape or the device does not fit.
        GPartFileError: if a model's folder has no ``config.json``.
    """
    device = find_device(settings.device)
    subject = find_subject(settings.model, settings.sizes, settings.precision)
    longest = subject.longest()
    for batch, tokens in settings.shapes:
        if longest is not None and tokens > longest:
            raise GPartError(f"shape {batch}x{tokens} has {tokens} tokens, {settings.model} takes at most {longest}")
    trained = {method.text: count_trained(method, subject) for method in settings.chosen()}
    generator = _find_generator(settings, subject) if "generate" in settings.parts else None
    return Result(settings, subject, generator, device, trained)


def run(result: Result, tell: Tell) -> Iterator[Result]:
    """Measures the parts that were asked for, and gives the result after each, and after each method's memory.

    Args:
        result: as :func:`prepare` gives it; is filled.
        tell: is called after each step.
    """
    settings = result.settings
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if "memory" in settings.parts:
        methods = [method.text for method in settings.chosen(FLOOR)]
        for done, name in enumerate([FREED, *methods]):
            result.peaks.append(measure_peak(settings, name))
            tell("memory", done + 1, len(methods) + 1)
            yield result
    for timing in _timings(result, tell):
        result.timings.append(timing)
        yield result


def _timings(result: Result, tell: Tell) -> Iterator[Timing]:
    settings = result.settings
    result.heap_kept = result.device.type == "cpu" and keep_freed_memory()
    turns = Turns(result.device, settings.rounds, settings.warmup, settings.seed, tell)
    if {"inject", "train", "eval"} & set(settings.parts):
        base = result.subject.build(result.device, settings.seed)
        if "inject" in settings.parts:
            yield _inject(result, base, turns)
        if {"train", "eval"} & set(settings.parts):
            yield from _steps(result, base, turns)
        del base
    if result.generator is not None:
        methods = [method for method in settings.chosen(FROZEN) if method.kind in (FROZEN, GPART)]
        yield generation(turns, result.generator, methods, settings.new_tokens)


def _inject(result: Result, base: nn.Module, turns: Turns) -> Timing:
    """Seconds to apply each adapter to a fresh copy of the model; GPart's group indices, where stored, apart."""
    fresh: list[nn.Module] = []
    adapters: list[GPartAdapter] = []

    def copy() -> None:
        fresh.append(deepcopy(base))

    def compute() -> None:
        for weight in adapters[-1].plan.weights:
            adapters[-1].weights.blocks(weight, result.device)

    def copy_and_attach(method: Method) -> None:
        copy()
        adapter = apply(method, result.subject, fresh[-1])
        if adapter is not None:
            adapters.append(adapter)

    def clear() -> None:
        fresh.clear()
        adapters.clear()

    trials = {}
    for method in result.settings.chosen():
        if method.kind in (FROZEN, FLOOR, FULL):
            continue

        def inject(method: Method = method) -> None:
            apply(method, result.subject, fresh[-1])

        trials[method.text] = Trial(inject, copy, clear)
        if method.kind == GPART and method.indices != "computed":
            trials[f"{method.text} {GROUPS}"] = Trial(compute, partial(copy_and_attach, method), clear)
    return turns.time(trials, "inject", "inject")


def _steps(result: Result, base: nn.Module, turns: Turns) -> Iterator[Timing]:
    """Training and evaluation, with the same contestants."""
    settings, subject = result.settings, result.subject
    references = [name for name, part in ((FROZEN, "eval"), (FLOOR, "train")) if part in settings.parts]
    contestants = [enter(method, subject, base) for method in settings.chosen(*references)]
    shapes = list(dict.fromkeys(settings.shapes))
    if "train" in settings.parts:
        for shape in shapes:
            yield training(turns, subject, contestants, shape, FLOOR)
        if settings.accumulate > 1:
            shape = shapes[0]
            seeds = range(settings.seed, settings.seed + settings.accumulate)
            batches = [make_batch(subject, shape, seed, result.device) for seed in seeds]
            trials = {
                one.method.text: Trial(partial(one.train_step, batches))
                for one in contestants
                if one.method.kind in (FLOOR, GPART)
            }
            yield turns.time(trials, "train", f"train {settings.accumulate} x {name_shape(shape)}", FLOOR)
    if "eval" in settings.parts:
        yield from evaluation(turns, subject, contestants, shapes)


def _find_generator(settings: Settings, subject: Subject) -> Subject:
    """The model itself if it can generate, else the other one, with the layers that are usual there."""
    if subject.task == "causal-lm":
        found = subject
    else:
        sizes = dataclasses.replace(settings.sizes, target_modules=None, modules_to_save=None, task="auto")
        found = find_subject(settings.generate, sizes, settings.precision)
    if found.task != "causal-lm":
        raise GPartError(f"only causal-lm models generate; {settings.generate} is for {found.task}")
    longest = found.longest()
    if longest is not None and PROMPT + settings.new_tokens > longest:
        raise GPartError(
            f"{settings.new_tokens} new tokens after {PROMPT} are too many: {found.name} takes at most {longest}"
        )
    return found
