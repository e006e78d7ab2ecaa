"""Hands questions to vLLM, all at once: the merged weights go into a temporary folder, which vLLM reads.

Invariant: vLLM is given the prompts' very tokens, and the tokens that it gives back become texts as those of
Transformers do. Whatever happens, the folder is removed, and the network is back on its device as it was.

vLLM needs a GPU and has not been run with this: the tests have a package of its interface in its place.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM

from gpart.errors import GPartError
from gpart.lightning_modules.mathematics.generation import Generator, check_references, end_tokens, most_tokens

Engine = Literal["transformers", "vllm"]
"""What generates the answers in test and predict."""

Prompt = tuple[int, ...]
Asked = tuple[Prompt, int]
"""A prompt, and the largest number of tokens in its output."""


@runtime_checkable
class Method(Protocol):
    """A callback that has changed the network, and knows what it is without that."""

    def plain_network(self, network: nn.Module) -> AbstractContextManager[nn.Module]:
        """Within it, the network that is given has the keys of a plain one and all that was trained."""


@dataclass(frozen=True)
class Answered:
    """What vLLM has generated."""

    outputs: dict[Asked, tuple[str, int]]
    """The output for each prompt, and its number of tokens."""

    rate: float
    """Tokens per second, over all prompts."""

    def of(self, batch: dict[str, Any], limits: int | dict[str, int]) -> tuple[list[str], int, float]:
        """A batch's outputs, their number of tokens, and the batch's share of the seconds.

        Raises:
            GPartError: if a prompt was not handed over.
        """
        prompts = asked([batch], limits)
        if missing := [prompt for prompt in prompts if prompt not in self.outputs]:
            raise GPartError(
                f"{len(missing)} of {len(prompts)} prompts were not among the {len(self.outputs)} that vLLM was given"
                " at the start: the loader must give the same batches twice"
            )
        found = [self.outputs[prompt] for prompt in prompts]
        count = sum(tokens for _, tokens in found)
        return [text for text, _ in found], count, count / self.rate


def check_engine(engine: Engine, settings: dict[str, Any] | None, quantization: str | None) -> None:
    """Checks the settings, before anything is loaded.

    Raises:
        GPartError: if there is no such engine, it does not go with another setting, or vLLM is not installed.
    """
    if engine not in get_args(Engine):
        raise GPartError(f"engine must be one of {list(get_args(Engine))}, got {engine!r}")
    if engine == "transformers":
        if settings is not None:
            raise GPartError(f"engine_settings are vLLM's, and engine is {engine!r}: got {settings!r}")
        return
    if own := {"model", "tokenizer", "seed"} & set(settings or {}):
        raise GPartError(f"engine_settings may be all of vllm.LLM but {sorted(own)}, which are set here")
    if quantization is not None:
        raise GPartError(
            f"engine='vllm' reads merged weights, which quantization={quantization!r} would round to its few bits"
        )
    if find_spec("vllm") is None:
        raise GPartError("engine='vllm' needs the package vllm, which is missing: pip install 'gpart-lightning[vllm]'")


def check_processes(count: int) -> None:
    """Checks that one process hands over.

    Raises:
        GPartError: if there are more.
    """
    if count != 1:
        raise GPartError(
            f"engine='vllm' takes the questions from 1 process, and the trainer has {count}: give it one device; vLLM"
            " itself spreads over several by engine_settings={'tensor_parallel_size': N}"
        )


def batches_of(loaders: Any, limits: Sequence[int | float]) -> list[dict[str, Any]]:
    """The batches that a loop is going to see.

    Args:
        loaders: the loop's loaders, in any form that Lightning takes.
        limits: how many batches of each it takes; infinite if all.
    """
    flat = CombinedLoader(loaders, "sequential").flattened
    return [
        batch
        for loader, limit in zip(flat, limits, strict=True)
        for batch in islice(loader, None if limit == float("inf") else int(limit))
    ]


def prompts_of(batch: dict[str, Any]) -> list[Prompt]:
    """The tokens of a batch's prompts, without padding.

    >>> prompts_of({"input_ids": torch.tensor([[0, 0, 7], [7, 8, 9]]), "attention_mask": torch.tensor([[0, 0, 1], [1, 1, 1]])})
    [(7,), (7, 8, 9)]
    """
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in pairs]


def asked(batches: list[dict[str, Any]], limits: int | dict[str, int]) -> list[Asked]:
    """The prompts of batches, each with the largest number of tokens in its output (:func:`most_tokens`)."""
    found = [(most_tokens(limits, batch.get("benchmark", ())), prompts_of(batch)) for batch in batches]
    return [(prompt, most) for most, prompts in found for prompt in prompts]


@torch.inference_mode(mode=False)
@torch.no_grad()
def answer_all(
    module: LightningModule,
    network: nn.Module,
    batches: list[dict[str, Any]],
    limits: int | dict[str, int],
    generator: Generator,
    settings: dict[str, Any] | None,
) -> Answered:
    """Answers the questions of all batches by vLLM, greedily.

    Args:
        module: whose trainer's callbacks may have changed the network. It leaves the GPU for as long as vLLM runs.
        network: a part of it, the model of Transformers.
        batches: the questions.
        limits: the largest number of tokens in an output; one for all, or one for each benchmark.
        generator: what the module generates with otherwise.
        settings: further arguments of ``vllm.LLM``.

    Raises:
        GPartError: if a reference has no final answer, the network cannot be merged into a plain one, the weights cannot
            be written, the model has fewer positions than a text may take, or vLLM refuses.
    """
    for batch in batches:
        if "reference" in batch:
            check_references(batch)
    prompts = list(dict.fromkeys(asked(batches, limits)))
    length = max(len(prompt) + most for prompt, most in prompts)
    positions = getattr(network.config, "max_position_embeddings", None)
    if positions is not None and length > positions and "max_model_len" not in (settings or {}):
        raise GPartError(
            f"a prompt and max_new_tokens={limits} are {length} tokens, and vLLM goes up to the model's"
            f" {positions} positions"
        )
    with _off_the_gpu(module), TemporaryDirectory(prefix="gpart-vllm-") as folder:
        _write(module, network, generator, folder)
        given: dict[str, Any] = {"dtype": str(next(network.parameters()).dtype).removeprefix("torch.")}
        given |= {"max_model_len": length, **(settings or {})}
        rows, seconds = _generate(folder, network, prompts, generator, given)
    texts = generator.texts(network, rows)
    tokens = sum(count for _, count in texts)
    return Answered(dict(zip(prompts, texts, strict=True)), tokens / max(seconds, 1e-9))


@contextmanager
def _off_the_gpu(module: LightningModule) -> Iterator[None]:
    """Within it the module is in the CPU's memory: vLLM asks for most of the GPU's."""
    device = module.device
    if device.type != "cpu":
        module.to("cpu")
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        gc.collect()  # vLLM's engine ends, and gives back its memory, when nothing refers to it
        if device.type != "cpu":
            torch.cuda.empty_cache()
            module.to(device)


def _write(module: LightningModule, network: nn.Module, generator: Generator, folder: str) -> None:
    """Writes the merged network and the tokenizer as Transformers does."""
    with ExitStack() as scopes:
        for callback in module.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
            if isinstance(callback, Method):
                network = scopes.enter_context(callback.plain_network(network))
        _check_plain(module, network)
        try:
            network.save_pretrained(folder)  # type: ignore[operator]  # every model of Transformers has it
            generator.tokenizer.save_pretrained(folder)
        except (OSError, SafetensorError, ValueError) as error:
            raise GPartError(
                f"the merged weights cannot be written to {folder} for vLLM: {error}; the environment variable TMPDIR"
                " names another place"
            ) from error


def _check_plain(module: LightningModule, network: nn.Module) -> None:
    """Checks that the network's state is all that was trained, and is what vLLM looks for in its files."""
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(network.config).state_dict()  # type: ignore[no-untyped-call]
    found = network.state_dict()
    beside = [name for name in module.state_dict() if not name.startswith("model.")]
    more = [*(name for name in found if name not in plain), *beside]
    fewer = [name for name in plain if name not in found]
    if more or fewer:
        raise GPartError(
            f"vLLM reads plain models. {type(network).__name__} has {more[:3]} beside a plain one's weights, and lacks"
            f" {fewer[:3]}: give what has changed it as a callback of the trainer, or merge it before"
        )


def _generate(
    folder: str, network: nn.Module, prompts: list[Asked], generator: Generator, given: dict[str, Any]
) -> tuple[list[list[int]], float]:
    """The new tokens of each prompt, and the seconds that they took, without those of loading."""
    import vllm  # noqa: PLC0415  # an optional dependency, and it takes many seconds

    settings: Any = network.generation_config
    wanted = [
        vllm.SamplingParams(
            temperature=0.0,
            max_tokens=most,
            stop=list(generator.stop) or None,
            stop_token_ids=sorted(end_tokens(network, generator.tokenizer)),
            repetition_penalty=settings.repetition_penalty or 1.0,  # Transformers takes the model's own, vLLM would not
            skip_special_tokens=True,
        )
        for _, most in prompts
    ]
    try:
        engine = vllm.LLM(model=str(Path(folder)), seed=0, **given)
        start = time.perf_counter()
        found = engine.generate([{"prompt_token_ids": list(prompt)} for prompt, _ in prompts], wanted)
    except (ValueError, RuntimeError, TypeError) as error:
        raise GPartError(f"vLLM refuses {given}: {error}") from error
    return [list(one.outputs[0].token_ids) for one in found], time.perf_counter() - start
