"""Turns questions and answers into tokens: which columns hold them, how a question is put, which tokens are learnt.

Invariant: prompt and answer are tokenised as one text, as the model has read texts in its pretraining. The prompt ends
without a blank, so that its tokens are the same in generation: a lone blank at its end would be a token that no text has
before a word.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from datasets import Dataset

from gpart.datamodules.common.text import load_tokenizer, tokenizer_fingerprint
from gpart.errors import GPartError

PAIRS = (("query", "response"), ("question", "answer"), ("problem", "solution"), ("instruction", "output"))
"""The columns of question and answer in MetaMathQA, GSM8K, MATH and MetaMath's own file of MATH's test questions."""

DATE = "26 Jul 2024"
"""The date that chat templates are given. Llama's would otherwise write the current date into every prompt."""


@dataclass(frozen=True)
class Report:
    """How many rows of the training data were used, cut or left out.

    Args:
        rows: the number of rows in the data.
        empty: rows left out because the question or the answer is empty.
        dropped: rows left out because the prompt alone has ``max_length`` tokens, so that there is nothing to learn.
        truncated: rows cut at ``max_length``. They have no end token, so that the model does not learn to stop there.
        merged: rows in which one token holds the end of the prompt and the beginning of the answer. There, generation
            starts from other tokens than training.
    """

    rows: int
    empty: int
    dropped: int
    truncated: int
    merged: int

    def __str__(self) -> str:
        """The report in one line."""
        merged = f", in {self.merged} a token joins the prompt's end to the answer" if self.merged else ""
        return (
            f"of {self.rows} rows {self.truncated} are cut at max_length and have no end token, {self.dropped} are left"
            f" out whose prompt alone is that long, {self.empty} are left out without question or answer{merged}"
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


class Example(NamedTuple):
    """A prompt with its answer, in tokens."""

    ids: list[int]
    """All of them, the end token with them."""
    border: int
    """How many of the first ones are the same as those of the prompt alone."""
    prompt: int
    """How many the prompt alone has."""


class Conversations:
    """Makes the tokens of prompts and of whole examples for one model.

    The text of an example is the prompt, a blank, and the answer. If the given prompt ends in blanks, these stand between
    the two, and generation starts before them. After a line break there is no blank.

    Args:
        model: the model whose tokenizer is used: a name on the hub, a folder, or ``packaged:NAME``.
        prompt: a text with ``{question}`` in it. It is not used with a chat template.
        chat: whether the tokenizer's chat template makes the prompt. The question is then the user's turn.
        completion_only_loss: whether the answer's tokens alone are targets of the loss, or the prompt's too.

    Raises:
        GPartFileError: if there is no such model.
        GPartError: if its tokenizer has no end token; or if ``chat`` is True and it has no chat template.
    """

    def __init__(self, model: str, prompt: str, chat: bool = False, completion_only_loss: bool = True) -> None:
        self.model, self.prompt, self.chat, self.completion_only_loss = model, prompt, chat, completion_only_loss
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
        loss = self.completion_only_loss
        return f"{tokenizer_fingerprint(self.tokenizer)} {self.eos} {self.prompt!r} {loss} {chat}"

    def prompts(self, questions: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of each prompt, including the special tokens that the tokenizer puts before a text."""
        return self._prompts(self._starts(questions))

    def examples(self, questions: Sequence[str], answers: Sequence[str]) -> list[Example]:
        """Returns the tokens of each prompt with its answer and the end token.

        Raises:
            GPartError: if the chat template does not put the prompt in front of the answer.
        """
        starts = self._starts(questions)
        wholes = self._tokens(self._wholes(starts, questions, answers), special=not self.chat)
        found = []
        for prompt, ids in zip(self._prompts(starts), wholes, strict=True):
            border = _shared(prompt, ids)
            # A template may write the end token, with more behind it.
            ended = self.eos in ids[border:] if self.chat else ids[-1:] == [self.eos]
            found.append(Example(ids if ended else [*ids, self.eos], border, len(prompt)))
        return found

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
            examples = self.examples(questions, answers)
            fates = []
            for one, out in zip(examples, blank, strict=True):
                if out or not one.prompt:
                    fates.append("empty")
                elif one.prompt >= max_length:
                    fates.append("dropped")
                else:
                    fates.append("truncated" if len(one.ids) > max_length else "whole")
            cut = [one.ids[:max_length] for one in examples]
            return {
                "input_ids": cut,
                # The first token is never a target: there is nothing that it could be predicted from.
                "prompt": [one.border if self.completion_only_loss else 1 for one in examples],
                "length": [len(ids) for ids in cut],
                "idx": numbers,
                "fate": fates,
                "merged": [one.border < one.prompt for one in examples],
            }

        # We name the result ourselves, as for GLUE: the name that map() derives from the tokenizer's state would differ
        # in every run.
        key = f"{data._fingerprint} {self.key} {columns} {max_length} 2"
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
        used = rows.select(kept)
        report = Report(len(fates), count["empty"], count["dropped"], count["truncated"], sum(used["merged"][:]))
        return used.remove_columns(["fate", "merged"]), report

    def _starts(self, questions: Sequence[str]) -> list[str]:
        """The texts of the prompts, as generation starts from them."""
        if self.chat:
            return self._chats([[{"role": "user", "content": question}] for question in questions], prompt=True)
        # replace() and not format(), since formulas are full of braces.
        return [self.prompt.replace("{question}", text).rstrip(" ") for text in questions]

    def _prompts(self, starts: Sequence[str]) -> list[list[int]]:
        found = self._tokens(starts, special=not self.chat)
        # Some tokenizers put an end token behind every text. The model would generate nothing after it.
        return [ids[:-1] if not self.chat and ids[-1:] == [self.eos] else ids for ids in found]

    def _wholes(self, starts: Sequence[str], questions: Sequence[str], answers: Sequence[str]) -> list[str]:
        """The texts of the prompts with their answers."""
        if not self.chat:
            given = self.prompt[len(self.prompt.rstrip(" ")) :]
            return [
                start + (given or ("" if start[-1:].isspace() else " ")) + answer.lstrip(" ")
                for start, answer in zip(starts, answers, strict=True)
            ]
        turns = zip(questions, answers, strict=True)
        wholes = self._chats(
            [[{"role": "user", "content": asked}, {"role": "assistant", "content": told}] for asked, told in turns]
        )
        for start, whole in zip(starts, wholes, strict=True):
            if not whole.startswith(start):
                raise GPartError(
                    f"the chat template of {self.model} does not put the prompt before the answer: the prompt is"
                    f" {start!r}, the whole {whole!r}"
                )
        return wholes

    def _chats(self, conversations: list[list[dict[str, str]]], prompt: bool = False) -> list[str]:
        chats: Any = self.tokenizer.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=prompt, date_string=DATE
        )
        return list(chats)

    def _tokens(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        # verbose=False: no warning of texts that are longer than the model's own limit, since max_length cuts them.
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
        return found


def _shared(one: list[int], two: list[int]) -> int:
    """The number of first tokens that are the same in both."""
    if two[: len(one)] == one:
        return len(one)
    pairs = zip(one, two, strict=False)
    return next((at for at, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(one), len(two)))
