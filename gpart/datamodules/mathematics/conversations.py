"""Turns questions and answers into tokens: which columns hold them, how a question is put, which tokens are learnt.

Invariant: the prompt and the response are tokenised separately and then joined. So the prompt has the same tokens in
training as in generation. An example starts with its prompt, and no token of the prompt is a target of the loss.
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
from gpart.errors import GPartError

PAIRS = (("query", "response"), ("question", "answer"), ("problem", "solution"), ("instruction", "output"))
"""The columns of question and answer in MetaMathQA, GSM8K, MATH and MetaMath's own file of MATH's test questions."""

IGNORED = -100
"""The label of a token that is no target of the loss."""

DATE = "26 Jul 2024"
"""The date that chat templates are given. Llama's would otherwise write the current date into every prompt."""


class Encoded(TypedDict):
    """An example: its tokens, the number of tokens in its prompt, and the number of its row."""

    input_ids: list[int]
    prompt: int
    idx: int


@dataclass(frozen=True)
class Report:
    """How many rows of the training data were used, cut or left out.

    Args:
        rows: the number of rows in the data.
        empty: rows left out because the question or the answer is empty.
        dropped: rows left out because the prompt alone has ``max_length`` tokens, so that there is nothing to learn.
        truncated: rows cut at ``max_length``. They have no end token, so that the model does not learn to stop there.
    """

    rows: int
    empty: int
    dropped: int
    truncated: int

    def __str__(self) -> str:
        """The report in one line."""
        return (
            f"of {self.rows} rows {self.truncated} are cut at max_length and have no end token, {self.dropped} are left"
            f" out whose prompt alone is that long, {self.empty} are left out without question or answer"
        )


def text_columns(data: Dataset, place: str) -> tuple[str, str]:
    """Finds the columns of question and answer.

    Args:
        data: the data set.
        place: its name, for messages.

    Raises:
        GPartError: if there is no pair of ``PAIRS``, its columns do not hold strings, or a third column holds a part of
            the questions.
    """
    names = data.column_names
    for pair in PAIRS:
        if set(pair) <= set(names):
            for name in pair:
                if (kind := getattr(data.features[name], "dtype", "no text")) not in ("string", "large_string"):
                    raise GPartError(f"{place}: the column {name!r} holds {kind}, expected strings")
            if pair == PAIRS[-1] and "input" in names and (beside := [text for text in data["input"][:] if text]):
                raise GPartError(
                    f"{place}: the column 'instruction' must hold whole questions, but 'input' adds to"
                    f" {len(beside)} of them, such as {beside[0]!r}"
                )
            return pair
    wanted = " or ".join(str(pair) for pair in PAIRS)
    raise GPartError(f"{place} has the columns {names}; expected {wanted}")


def labels_of(example: Encoded) -> list[int]:
    """Returns an example's labels: its tokens, with -100 in place of those of the prompt.

    >>> labels_of({"input_ids": [7, 8, 9], "prompt": 2, "idx": 0})
    [-100, -100, 9]
    """
    return [IGNORED] * example["prompt"] + example["input_ids"][example["prompt"] :]


class Conversations:
    """Makes the tokens of prompts and responses for one model.

    Args:
        model: the model whose tokenizer is used: a name on the hub, a folder, or ``packaged:NAME``.
        prompt: a text with ``{question}`` in it. It is not used with a chat template.
        chat: whether the tokenizer's chat template makes the prompt. The question is then the user's turn.

    Raises:
        GPartFileError: if there is no such model.
        GPartError: if its tokenizer has no end token; or if ``chat`` is True and it has no chat template.
    """

    def __init__(self, model: str, prompt: str, chat: bool = False) -> None:
        self.model, self.prompt, self.chat = model, prompt, chat
        self.tokenizer = load_tokenizer(model)
        if self.tokenizer.eos_token_id is None:
            raise GPartError(
                f"the tokenizer of {model} has no end-of-text token, by which an answer ends; its special tokens are"
                f" {self.tokenizer.special_tokens_map}"
            )
        if chat and not self.tokenizer.chat_template:
            raise GPartError(f"chat_template=True, but the tokenizer of {model} has no chat template")
        self.eos: int = self.tokenizer.eos_token_id
        self.pad: int = self.tokenizer.pad_token_id

    @property
    def key(self) -> str:
        """A text that differs wherever the tokens of some example would differ. It is used as a key for caches."""
        chat = ""
        if self.chat:
            # A sample is part of the key, since some templates write the current date into a conversation.
            sample = self._chats([[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]])
            chat = f"{self.tokenizer.chat_template} {sample}"
        return f"{tokenizer_fingerprint(self.tokenizer)} {self.eos} {self.prompt!r} {chat}"

    def prompts(self, questions: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of each prompt, including the special tokens that the tokenizer puts before a text."""
        if self.chat:
            texts = self._chats([[{"role": "user", "content": question}] for question in questions], prompt=True)
            return self._tokens(texts)
        # replace() and not format(), since formulas are full of braces.
        found = self._tokens([self.prompt.replace("{question}", text) for text in questions], special=True)
        # Some tokenizers put an end token behind every text. The model would generate nothing after it.
        return [ids[:-1] if ids[-1:] == [self.eos] else ids for ids in found]

    def responses(self, questions: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of each answer, including the end token.

        Raises:
            GPartError: if the chat template does not put the prompt in front of the answer.
        """
        if self.chat:
            users = [{"role": "user", "content": question} for question in questions]
            starts = self._chats([[user] for user in users], prompt=True)
            turns = [{"role": "assistant", "content": answer} for answer in answers]
            wholes = self._chats([[user, turn] for user, turn in zip(users, turns, strict=True)])
            for start, whole in zip(starts, wholes, strict=True):
                if not whole.startswith(start):
                    raise GPartError(
                        f"the chat template of {self.model} does not put the prompt before the answer: the prompt is"
                        f" {start!r}, the whole {whole!r}"
                    )
            answers = [whole[len(start) :] for start, whole in zip(starts, wholes, strict=True)]
        found = self._tokens(answers)
        return [ids if self.chat and self.eos in ids else [*ids, self.eos] for ids in found]

    def encode(self, data: Dataset, place: str, max_length: int) -> tuple[Dataset, Report]:
        """Tokenises the rows of a data set, and leaves out those from which nothing can be learnt.

        Rows are tokenised once; later runs find the result in the cache of ``datasets``.

        Args:
            data: the data set.
            place: its name, for messages.
            max_length: the number of tokens at which an example is cut.

        Returns:
            The examples, and a report of the rows that were cut or left out.

        Raises:
            GPartError: if there are no columns of question and answer, or the chat template does not fit.
        """
        columns = text_columns(data, place)

        def encode(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            texts = [[text or "" for text in rows[name]] for name in columns]
            # A chat template may refuse an empty text. It gets one letter instead, and the row is left out below.
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

        # We name the result ourselves, as for GLUE: the name that map() derives from the tokenizer's state would differ
        # in every run.
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
        # verbose=False: no warning of texts that are longer than the model's own limit, since max_length cuts them.
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
        return found


@dataclass(frozen=True)
class LossCollate:
    """Pads examples on the right. It is a class of its own, so that workers can pickle it without the DataModule.

    Args:
        pad: the padding token's id.
    """

    pad: int

    def __call__(self, examples: list[Encoded]) -> dict[str, torch.Tensor]:
        """Returns the batch: ``input_ids``, ``attention_mask`` and ``labels``, each of shape (batch, tokens)."""
        longest = max(len(one["input_ids"]) for one in examples)
        rest = [longest - len(one["input_ids"]) for one in examples]
        pairs = list(zip(examples, rest, strict=True))
        return {
            "input_ids": torch.tensor([one["input_ids"] + [self.pad] * right for one, right in pairs]),
            "attention_mask": torch.tensor([[1] * (longest - right) + [0] * right for right in rest]),
            "labels": torch.tensor([labels_of(one) + [IGNORED] * right for one, right in pairs]),
        }
