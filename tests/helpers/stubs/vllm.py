"""Stands for the package vllm, with the part of its interface that is used: ``LLM``, ``SamplingParams`` and outputs.

It reads the folder that it is given by Transformers, and generates one prompt at a time and token by token, by no code
that the project has. As vLLM does, it keeps the end token among an output's tokens, cuts ``text`` before a stop string,
and refuses what the model has no positions for. ``LLM.made`` are the arguments of all engines; ``alive`` counts those
that have not been let go; ``fails`` makes one of its steps fail.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int | None = 16
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    repetition_penalty: float = 1.0
    skip_special_tokens: bool = True


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = True


class LLM:
    made: ClassVar[list[dict[str, Any]]] = []
    calls: ClassVar[list[tuple[list[list[int]], list[SamplingParams]]]] = []
    alive: ClassVar[weakref.WeakSet[LLM]] = weakref.WeakSet()
    fails: ClassVar[str] = ""

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        dtype: str = "auto",
        seed: int = 0,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
    ) -> None:
        LLM.made.append({"model": model, "dtype": dtype, "seed": seed, "max_model_len": max_model_len,
                         "gpu_memory_utilization": gpu_memory_utilization, "files": sorted(path.name for path in Path(model).iterdir())})  # fmt: skip
        LLM.alive.add(self)
        if LLM.fails == "init":
            raise ValueError("Free memory on device is less than desired GPU memory utilization")
        self.network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or model)
        self.limit = max_model_len or self.network.config.max_position_embeddings
        if self.limit > self.network.config.max_position_embeddings:
            raise ValueError(f"User-specified max_model_len ({self.limit}) is greater than the derived max_model_len")

    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: list[SamplingParams], *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        LLM.calls.append(([prompt["prompt_token_ids"] for prompt in prompts], sampling_params))
        if LLM.fails == "generate":
            raise KeyboardInterrupt
        if len(sampling_params) != len(prompts):
            raise ValueError("The lengths of prompts and params must be the same.")
        return [
            RequestOutput(str(at), prompt["prompt_token_ids"], [self._one(prompt["prompt_token_ids"], wanted)])
            for at, (prompt, wanted) in enumerate(zip(prompts, sampling_params, strict=True))
        ]

    @torch.no_grad()
    def _one(self, prompt: list[int], wanted: SamplingParams) -> CompletionOutput:
        assert wanted.temperature == 0
        ends = self.network.generation_config.eos_token_id
        stops = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        stops |= set(wanted.stop_token_ids or ())
        found: list[int] = []
        while len(found) < wanted.max_tokens and len(prompt) + len(found) < self.limit:
            logits = self.network(input_ids=torch.tensor([prompt + found])).logits[0, -1]
            seen = sorted({*prompt, *found})
            logits[seen] = torch.where(
                logits[seen] > 0, logits[seen] / wanted.repetition_penalty, logits[seen] * wanted.repetition_penalty
            )
            found.append(int(logits.argmax()))
            text = self.tokenizer.decode(found, skip_special_tokens=wanted.skip_special_tokens)
            if found[-1] in stops:
                return CompletionOutput(0, text, found, "stop")
            if cut := [text.index(stop) for stop in wanted.stop or () if stop in text]:
                return CompletionOutput(0, text[: min(cut)], found, "stop")
        return CompletionOutput(0, text, found, "length")
