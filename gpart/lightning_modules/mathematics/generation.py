"""Generates answers in batches, and scores them.

Invariant: an output depends on its own prompt alone, not on the batch that it is in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from gpart.assets.fetching import gguf, loading
from gpart.errors import GPartError
from gpart.lightning_modules.mathematics.answers import exact_match, extract_answer, verified_match

Row = dict[str, Any]


class Generator:
    """Greedy generation with a model's own tokenizer.

    Args:
        model: the model whose tokenizer is used: a name on the hub, a folder, a GGUF file, or ``packaged:NAME``.
        stop: strings that end an output.

    Raises:
        GPartFileError: if there is no such model, or it has no tokenizer.
        GPartError: if the tokenizer can't be read.
    """

    def __init__(self, model: str, stop: tuple[str, ...]) -> None:
        with loading(model) as name:
            place, more = gguf(name)
            self.tokenizer = AutoTokenizer.from_pretrained(place, **more)
        self.stop = stop

    def __call__(
        self, network: nn.Module, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int
    ) -> tuple[list[str], int, float]:
        """Continues prompts.

        Args:
            network: a Transformers model.
            input_ids: the prompts, padded on the left, of shape (batch, tokens).
            attention_mask: 0 for padding and 1 elsewhere, of the same shape.
            max_new_tokens: the largest number of tokens in an output.

        Returns:
            The outputs, without prompt, blanks at the start, end token and stop string; the number of tokens generated;
            and the seconds that it took.
        """
        start, prompt = time.perf_counter(), input_ids.shape[1]
        tokenizer = self.tokenizer
        stopping = {"stop_strings": list(self.stop), "tokenizer": tokenizer} if self.stop else {}
        # Greedy, even if the model's own generation config asks for sampling.
        settings = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        with torch.no_grad():
            tokens = network.generate(  # type: ignore[operator]  # every causal model of Transformers has it
                input_ids=input_ids,
                attention_mask=attention_mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
                **settings,
                **stopping,
            )[:, prompt:]
        texts = self.texts(network, tokens.tolist())
        return [text for text, _ in texts], sum(count for _, count in texts), time.perf_counter() - start

    def texts(self, network: nn.Module, rows: list[list[int]]) -> list[tuple[str, int]]:
        """Turns generated tokens into outputs.

        Args:
            network: what generated them.
            rows: the tokens after each prompt.

        Returns:
            For each row the text before its end token and its stop string, without blanks at its start, and the number of
            tokens before its end token.
        """
        ends = end_tokens(network, self.tokenizer)
        cut = [_until_end(row, ends) for row in rows]
        # A prompt ends before the blank that stands between it and the answer, so that most outputs begin with one.
        decoded = [str(self.tokenizer.decode(row, skip_special_tokens=True)).lstrip(" ") for row in cut]
        return [(self._until_stop(text), len(row)) for text, row in zip(decoded, cut, strict=True)]

    def _until_stop(self, text: str) -> str:
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        return text[: min(found)] if found else text


def most_tokens(limits: int | dict[str, int], benchmarks: Sequence[str]) -> int:
    """The largest number of tokens in the outputs of a batch.

    Args:
        limits: one number for all, or one for each benchmark. A benchmark that is not named has the largest of these.
        benchmarks: the benchmarks that the batch's questions are from.

    Example:
        >>> limits = {"gsm8k": 1024, "math": 2048}
        >>> [most_tokens(limits, names) for names in (["gsm8k", "gsm8k"], ["gsm8k", "math"], ["own"], [])]
        [1024, 2048, 2048, 2048]
    """
    if isinstance(limits, int):
        return limits
    largest = max(limits.values())
    return max((limits.get(name, largest) for name in benchmarks), default=largest)


def end_tokens(network: nn.Module, tokenizer: Any) -> set[int]:
    """The tokens at which an output ends: those of the model's generation config, and the tokenizer's."""
    ends = network.generation_config.eos_token_id  # type: ignore[union-attr]
    return {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}


def _until_end(row: list[int], ends: set[int]) -> list[int]:
    """Returns the tokens before the first end token. What follows it is padding."""
    return next((row[:at] for at, token in enumerate(row) if token in ends), row)


def check_references(batch: dict[str, Any]) -> None:
    """Checks that every reference has a final answer to compare with.

    Args:
        batch: the questions, with their references, and in ``place`` the data sets that they are from.

    Raises:
        GPartError: if one has none, with the number of its row.

    Example:
        >>> check_references({"idx": [7], "reference": ["Add both."], "place": ["test.jsonl"]})
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: row 7 (from 0) of test.jsonl has no final answer in its reference 'Add both.'; ...
    """
    places = batch.get("place") or [""] * len(batch["idx"])
    for idx, reference, place in zip(batch["idx"], batch["reference"], places, strict=True):
        if extract_answer(reference) is None:
            of = f" of {place}" if place else ""
            raise GPartError(
                f"row {idx} (from 0){of} has no final answer in its reference {reference!r}; it must stand after"
                " '#### ' or 'The answer is:', or in \\boxed{...}"
            )


def judge(batch: dict[str, Any], outputs: list[str], verify: bool) -> list[Row]:
    """Scores outputs.

    Args:
        batch: the questions, with their references.
        outputs: the generated solutions.
        verify: whether math-verify scores them too.

    Returns:
        A row for each question: the question, the output, the answer in it, the right answer, and the scores.

    Raises:
        GPartError: if a reference has no final answer.
    """
    check_references(batch)
    rows = []
    for idx, question, reference, output in zip(
        batch["idx"], batch["question"], batch["reference"], outputs, strict=True
    ):
        row: Row = {
            "idx": idx,
            "question": question,
            "output": output,
            "extracted": extract_answer(output),
            "gold": extract_answer(reference),
            "exact_match": exact_match(output, reference),
        }
        rows.append({**row, "verified_match": verified_match(output, reference)} if verify else row)
    return rows


def write_rows(path: Path, rows: list[Row], started: set[Path]) -> None:
    """Appends rows to a file, as JSON lines. A file that is not in ``started`` is emptied first, and added there."""
    if path not in started:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
        started.add(path)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
