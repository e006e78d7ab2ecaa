r"""What the blank at the prompt's end costs a model before any training: its loss on GSM8K's answers with both prompts.

    python benchmarks/gsm8k-smollm2/prompts.py > benchmarks/gsm8k-smollm2/prompts.json

- apart: the prompt "Question: ...\nAnswer: " with its blank, and the answer, tokenised apart. gpart did so until 2026-11-28.
- whole: prompt, blank and answer tokenised as one text, as the MathDataModule does now.

The first 100 test questions of GSM8K, SmolLM2-135M-Instruct as it comes, float32. For each question: the loss of the
answer's first token and of the whole answer with its end token, in nats, and the number of tokens.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from gpart.datamodules.mathematics.conversations import Conversations
from gpart.datamodules.mathematics.math_datamodule import PROMPT
from gpart.datamodules.mathematics.sources import load_split
from gpart.lightning_modules.mathematics.language_models import build

MODEL, QUESTIONS = "packaged:smollm2", 100


def main() -> None:
    """Measures, and prints the result as JSON."""
    rows = load_split("../shared/data/gsm8k", "main", "test").select(range(QUESTIONS))
    own, network = Conversations(MODEL, PROMPT), build(MODEL).eval()
    measured: dict[str, list[dict[str, Any]]] = {"apart": [], "whole": []}
    for question, answer in zip(rows["question"], rows["answer"], strict=True):
        for kind, (ids, border) in {
            "apart": apart(own, question, answer),
            "whole": own.examples([question], [answer])[0][:2],
        }.items():
            losses = answer_losses(network, ids, border)
            measured[kind].append({"first": float(losses[0]), "answer": float(losses.sum()), "tokens": len(losses)})
    summary = {
        kind: {name: statistics.mean(row[name] for row in found) for name in ("first", "answer", "tokens")}
        for kind, found in measured.items()
    }
    json.dump(
        {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "mean": summary,
            "questions": measured,
        },
        sys.stdout,
        indent=1,
    )


def apart(own: Conversations, question: str, answer: str) -> tuple[list[int], int]:
    """The tokens of the prompt with a blank at its end, then those of the answer and the end token."""
    prompt = own.tokenizer(PROMPT.replace("{question}", question) + " ")["input_ids"]
    told = own.tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*prompt, *told, own.eos], len(prompt)


@torch.no_grad()
def answer_losses(network: nn.Module, ids: list[int], border: int) -> Tensor:
    """The loss of each token from the border on, given those before it."""
    logits = network(torch.tensor([ids])).logits[0, border - 1 : -1].float()
    return nn.functional.cross_entropy(logits, torch.tensor(ids[border:]), reduction="none")


if __name__ == "__main__":
    main()
