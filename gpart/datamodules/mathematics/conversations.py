"""Questions and answers as tokens: columns, prompts, what is learnt of an example.

Invariant: prompt and response are tokenised apart and joined, so that the prompt in training is bit for bit the prompt
from which answers are generated; the first token of an example is the prompt's, and no token of the prompt is learnt.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from datasets import Dataset

from gpart.datamodules.common.text import load_tokenizer, tokenizer_fingerprint

PAIRS = (("query", "response"), ("question", "answer"), ("problem", "solution"))
"""Columns of MetaMathQA, GSM8K and MATH."""

IGNORED = -100
"""The label that no loss is computed on."""

DATE = "26 Jul 2024"
"""What Llama's templates take for today; they would write each day's own into every prompt."""


class Encoded(TypedDict):
    """An example: its tokens, how many of them are the prompt's, and its row's number."""

    input_ids: list[int]
    prompt: int
    idx: int


@dataclass(frozen=True)
class Report:
    """What became of the training data's rows.

    Args:
        rows: how many there are.
        empty: left out, since the question or the answer is empty.
        dropped: left out, since the prompt alone takes ``max_length`` tokens: there is nothing to learn.
        truncated: cut at ``max_length``, and so without their end token: the model does not learn to stop there.
    """

    rows: int
    empty: int
    dropped: int
    truncated: int

    def __str__(self) -> str:
        """One line."""
        return (
            f"of {self.rows} rows {self.truncated} are cut at max_length and have no end token, {self.dropped} are left"
            f" out whose prompt alone is that long, {self.empty} are left out without question or answer"
        )


def text_columns(data: Dataset, place: str) -> tuple[str, str]:
    """The columns of question and answer.

    Args:
        data: a Dataset.
        place: where it is from, for messages.

    Raises:
        ValueError: if there is no such pair, or it holds no text.
    """
    names = data.column_names
    for pair in PAIRS:
        if set(pair) <= set(names):
            for name in pair:
                if (kind := getattr(data.features[name], "dtype", "no text")) not in ("string", "large_string"):
                    raise ValueError(f"{place}: the column {name!r} holds {kind}, expected strings")
            return pair
    wanted = " or ".join(str(pair) for pair in PAIRS)
    raise ValueError(f"{place} has the columns {names}; expected {wanted}")


def labels_of(example: Encoded) -> list[int]:
    """The tokens, with -100 in place of the prompt's.

    >>> labels_of({"input_ids": [7, 8, 9], "prompt": 2, "idx": 0})
    [-100, -100, 9]
    """
    return [IGNORED] * example["prompt"] + example["input_ids"][example["prompt"] :]


class Conversations:
    """How one model is asked and answers.

    Args:
        model: whose tokenizer: a name on the hub, a folder, or ``packaged:NAME``.
        prompt: the text with ``{question}`` in it; not used with a chat template.
        chat: whether the tokenizer's chat template makes the prompt, the question being the user's turn.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if its tokenizer has no end token, or no chat template where that is asked for.
    """

    def __init__(self, model: str, prompt: str, chat: bool = False) -> None:
        self.model, self.prompt, self.chat = model, prompt, chat
        self.tokenizer = load_tokenizer(model)
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of {model} has no end-of-text token, by which an answer ends; its special tokens are"
                f" {self.tokenizer.special_tokens_map}"
            )
        if chat and not self.tokenizer.chat_template:
            raise ValueError(f"chat_template=True, but the tokenizer of {model} has no chat template")
        self.eos: int = self.tokenizer.eos_token_id
        self.pad: int = self.tokenizer.pad_token_id

    @property
    def key(self) -> str:
        """What this does to any text, for caches."""
        chat = ""
        if self.chat:
            # What the template makes of one conversation, too: some write the day's date into it.
            sample = self._chats([[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]])
            chat = f"{self.tokenizer.chat_template} {sample}"
        return f"{tokenizer_fingerprint(self.tokenizer)} {self.eos} {self.prompt!r} {chat}"

    def prompts(self, questions: Sequence[str]) -> list[list[int]]:
        """The tokens of each prompt, with those that the tokenizer puts before a text."""
        if self.chat:
            texts = self._chats([[{"role": "user", "content": question}] for question in questions], prompt=True)
            return self._tokens(texts)
        # Not format(): formulas are full of braces.
        found = self._tokens([self.prompt.replace("{question}", text) for text in questions], special=True)
        # Some tokenizers end every text; behind an end, nothing would follow.
        return [ids[:-1] if ids[-1:] == [self.eos] else ids for ids in found]

    def responses(self, questions: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """The tokens of each answer, with the end token.

        Raises:
            ValueError: if the chat template does not put the prompt before the answer.
        """
        if self.chat:
            users = [{"role": "user", "content": question} for question in questions]
            starts = self._chats([[user] for user in users], prompt=True)
            turns = [{"role": "assistant", "content": answer} for answer in answers]
            wholes = self._chats([[user, turn] for user, turn in zip(users, turns, strict=True)])
            for start, whole in zip(starts, wholes, strict=True):
                if not whole.startswith(start):
                    raise ValueError(
                        f"the chat template of {self.model} does not put the prompt before the answer: the prompt is"
                        f" {start!r}, the whole {whole!r}"
                    )
            answers = [whole[len(start) :] for start, whole in zip(starts, wholes, strict=True)]
        found = self._tokens(answers)
        return [ids if self.chat and self.eos in ids else [*ids, self.eos] for ids in found]

    def encode(self, data: Dataset, place: str, max_length: int) -> tuple[Dataset, Report]:
        """The examples that something can be learnt from, and what became of the others.

        Tokenised once; later runs find it in the cache of ``datasets``.
        """
        columns = text_columns(data, place)

        def encode(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            texts = [[text or "" for text in rows[name]] for name in columns]
            # An empty text is asked for as one letter, and its row left out: a template may refuse it.
            blank = [not (question.strip() and answer.strip()) for question, answer in zip(*texts, strict=True)]
            questions, answers = (["x" if out else text for text, out in zip(own, blank, strict=True)] for own in texts)
            prompts, responses = self.prompts(questions), self.responses(questions, answers)
            fates = []
            for prompt, response, out in zip(prompts, responses, blank, strict=True):
                length = len(prompt) + len(response)
                if out or not prompt:
                    fates.append("empty")
                elif len(prompt) >= max_length:
                    fates.append("dropped")
                else:
                    fates.append("truncated" if length > max_length else "whole")
            joined = [(prompt + response)[:max_length] for prompt, response in zip(prompts, responses, strict=True)]
            return {
                "input_ids": joined,
                "prompt": [len(prompt) for prompt in prompts],
                "length": [len(ids) for ids in joined],
                "idx": numbers,
                "fate": fates,
            }

        # A name of our own, as for GLUE: map() would make another one from the tokenizer's state in every run.
        key = f"{data._fingerprint} {self.key} {columns} {max_length} 1"
        rows = data.map(
            encode,
            batched=True,
            with_indices=True,
            remove_columns=data.column_names,
            new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:16],
            desc="tokenise questions and answers",
        )
        fates = rows["fate"][:]
        count = Counter(fates)
        kept = [at for at, fate in enumerate(fates) if fate in ("whole", "truncated")]
        return rows.select(kept).remove_columns("fate"), Report(
            len(fates), count["empty"], count["dropped"], count["truncated"]
        )

    def _chats(self, conversations: list[list[dict[str, str]]], prompt: bool = False) -> list[str]:
        chats: Any = self.tokenizer.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=prompt, date_string=DATE
        )
        return list(chats)

    def _tokens(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        # Not verbose: a text longer than the model's own limit is cut by max_length.
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
        return found


@dataclass(frozen=True)
class LossCollate:
    """Pads examples on the right. An object of its own: spawned workers pickle it without the datamodule.

    Args:
        pad: the padding token's id.
    """

    pad: int

    def __call__(self, examples: list[Encoded]) -> dict[str, torch.Tensor]:
        """The batch: ``input_ids``, ``attention_mask``, ``labels``."""
        longest = max(len(one["input_ids"]) for one in examples)
        rest = [longest - len(one["input_ids"]) for one in examples]
        pairs = list(zip(examples, rest, strict=True))
        return {
            "input_ids": torch.tensor([one["input_ids"] + [self.pad] * right for one, right in pairs]),
            "attention_mask": torch.tensor([[1] * (longest - right) + [0] * right for right in rest]),
            "labels": torch.tensor([labels_of(one) + [IGNORED] * right for one, right in pairs]),
        }
