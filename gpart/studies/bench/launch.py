"""The regime in which launching operations costs more than arithmetic: ``gpart bench --launch``.

A small batch on a GPU feels it. Here it is a deep and narrow model, a few tokens and, on a CPU, one thread: what is
timed is the number of operations and the Python between them, hardly their arithmetic.

Training is compared with ``full``, which fine-tunes the adapted weights in full: the same numbers change as with GPart.
To train all of the model's weights is no reference here, since AdamW walks 393 tensors for that and takes longer than
all of LoRA's step. Evaluation and generation are compared with the frozen model.

Invariant: what can be wrong is found by :func:`prepare` before anything is measured. The contestants of a part are in
memory together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from gpart.errors import GPartError
from gpart.studies.bench.checks import check_lists, check_numbers
from gpart.studies.bench.heap import keep_freed_memory
from gpart.studies.bench.settings import FROZEN, FULL, LORA, Method, choose, find_device
from gpart.studies.bench.steps import PROMPT, Contestant, enter, make_batch
from gpart.studies.bench.subject import Subject, count_trained, make_subject
from gpart.studies.bench.timing import Trial
from gpart.studies.bench.turns import Tell, Timing, Turns, evaluation, generation, name_shape, training
from gpart.studies.counting.params import Settings as Sizes

YARDSTICK = LORA
"""The method whose excess the others' are divided by."""

METHODS = [FULL, FROZEN, LORA, "unilora", "gpart:weights=forward", "gpart:weights=kept", "gpart:weights=recomputed"]
"""What is compared unless told."""

REFERENCES = {"forward": FULL, "train": FULL, "eval": FROZEN, "generate": FROZEN}
"""The parts in the order in which they are measured, and what each is compared with."""

ENCODER_TARGETS, DECODER_TARGETS = ["query", "value"], ["q_proj", "v_proj"]
"""Query and value, as the two models call them."""

_HEADS, _VOCABULARY = 2, 1000


@dataclass(frozen=True)
class LaunchSettings:
    """One bench of launching.

    Raises:
        GPartError: if a value is outside its range, with the value.
    """

    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """As :func:`gpart.studies.bench.settings.parse_method` reads them. The references and the yardstick join them."""

    parts: list[str] = field(default_factory=lambda: list(REFERENCES))
    """Of :data:`REFERENCES`."""

    layers: int = 24
    """Of both models."""

    width: int = 32
    """Of both models' layers; their MLPs are twice as wide."""

    shapes: list[tuple[int, int]] = field(default_factory=lambda: [(1, 4)])
    """Batch and tokens."""

    new_tokens: int = 16
    """Generated in one call, after a prompt of 16."""

    device: str = "auto"
    """The GPU if there is one, else the CPU."""

    threads: int | None = 1
    """Of torch; None leaves them."""

    rounds: int = 31
    """Timed rounds."""

    warmup: int = 3
    """Rounds before."""

    seed: int = 0
    """Of the weights, the tokens and the order."""

    sizes: Sizes = field(default_factory=lambda: Sizes(d=512))
    """Each method's size. Query and value are adapted."""

    def __post_init__(self) -> None:
        check_numbers(self, layers=1, width=1, rounds=1, warmup=0, new_tokens=1, threads=1)
        check_lists(self.methods, self.parts, self.shapes, list(REFERENCES))
        if self.width % (2 * _HEADS):
            raise GPartError(
                f"width must be a multiple of {2 * _HEADS}: {_HEADS} heads of even width; got {self.width}"
            )
        self.chosen(self.parts)

    def chosen(self, parts: list[str]) -> list[Method]:
        """The methods that were asked for, before them the references of these parts and the yardstick if they were not."""
        needed = [*(REFERENCES[part] for part in parts), YARDSTICK]
        return choose([*(name for name in needed if name not in self.methods), *self.methods])

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass
class LaunchResult:
    """All that was measured so far."""

    settings: LaunchSettings
    encoder: Subject
    """What is trained and evaluated."""

    decoder: Subject
    """What generates."""

    device: torch.device
    trained: dict[str, int]
    """By method, the numbers that it trains beside the encoder's head."""

    timings: list[Timing] = field(default_factory=list)

    heap_kept: bool = False
    """Whether freed memory stayed with the process."""


def encoder_config(settings: LaunchSettings) -> PretrainedConfig:
    """A RoBERTa of these layers."""
    longest = max(tokens for _, tokens in settings.shapes)
    positions = longest + 2  # RoBERTa's begin behind the padding's number
    return _config("roberta", settings, max_position_embeddings=positions, pad_token_id=1)


def decoder_config(settings: LaunchSettings) -> PretrainedConfig:
    """A Llama of these layers."""
    positions = PROMPT + settings.new_tokens
    return _config("llama", settings, max_position_embeddings=positions, pad_token_id=0)


def prepare(settings: LaunchSettings) -> LaunchResult:
    """Builds both models without weights, and applies every method to the encoder on the meta device.

    Raises:
        GPartError: if a method or the device does not fit.
    """
    device = find_device(settings.device)
    name = f"{settings.layers}-layer {{}} of width {settings.width}"
    sizes = [replace(settings.sizes, target_modules=targets) for targets in (ENCODER_TARGETS, DECODER_TARGETS)]
    config = encoder_config(settings)
    encoder = make_subject(name.format("RoBERTa"), config, "sequence-classification", sizes[0], "32")
    decoder = make_subject(name.format("Llama"), decoder_config(settings), "causal-lm", sizes[1], "32")
    trained = {method.text: count_trained(method, encoder) for method in settings.chosen(settings.parts)}
    return LaunchResult(settings, encoder, decoder, device, trained)


def run(result: LaunchResult, tell: Tell) -> Iterator[LaunchResult]:
    """Measures the parts that were asked for, and gives the result after each.

    Args:
        result: as :func:`prepare` gives it; is filled.
        tell: is called after each step.
    """
    settings = result.settings
    if settings.threads:
        torch.set_num_threads(settings.threads)
    result.heap_kept = result.device.type == "cpu" and keep_freed_memory()
    for timing in _timings(result, Turns(result.device, settings.rounds, settings.warmup, settings.seed, tell)):
        result.timings.append(timing)
        yield result


def _timings(result: LaunchResult, turns: Turns) -> Iterator[Timing]:
    settings, encoder = result.settings, result.encoder
    asked = [part for part in settings.parts if part != "generate"]
    shapes = list(dict.fromkeys(settings.shapes))
    if asked:
        base = encoder.build(result.device, settings.seed)
        contestants = [enter(method, encoder, base) for method in settings.chosen(asked)]
        learners = [one for one in contestants if one.method.kind != FROZEN]  # it has no backward pass to speak of
        for shape in shapes if "forward" in asked else ():
            yield _forward(turns, encoder, learners, shape)
        for shape in shapes if "train" in asked else ():
            yield training(turns, encoder, learners, shape, REFERENCES["train"])
        if "eval" in asked:
            yield from evaluation(turns, encoder, contestants, shapes)
        del base, contestants, learners
    if "generate" in settings.parts:
        yield generation(turns, result.decoder, settings.chosen(["generate"]), settings.new_tokens)


def _forward(turns: Turns, subject: Subject, contestants: list[Contestant], shape: tuple[int, int]) -> Timing:
    """Seconds to the loss, each time under a theta that a training step has just changed, which is not timed."""
    batch = make_batch(subject, shape, turns.seed, turns.device)
    trials = {
        one.method.text: Trial(partial(one.loss, batch), before=partial(one.train_step, [batch])) for one in contestants
    }
    return turns.time(trials, "forward", f"forward {name_shape(shape)}", REFERENCES["forward"])


def _config(kind: str, settings: LaunchSettings, **own: int) -> PretrainedConfig:
    found: PretrainedConfig = AutoConfig.for_model(
        kind,
        num_hidden_layers=settings.layers,
        hidden_size=settings.width,
        intermediate_size=2 * settings.width,
        num_attention_heads=_HEADS,
        vocab_size=_VOCABULARY,
        **own,
    )
    return found
