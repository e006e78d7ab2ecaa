"""Where questions and answers come from: the hub, a folder in its layout, or one file."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from gpart.datamodules.mathematics.conversations import Conversations, text_columns
from gpart.datamodules.mathematics.generated import PREFIX, TASKS, generate
from gpart.datamodules.mathematics.questions import Question

BENCHMARKS = {"gsm8k": "main", "math": None, **dict.fromkeys(TASKS)}
"""The benchmarks, and the configuration of each: GSM8K has two, MATH-lighteval's default is the whole."""


def load_split(path: str, config: str | None, split: str) -> Dataset:
    """One split of a data set.

    Args:
        path: a name on the hub, a folder in its layout, a ``.json`` or ``.jsonl`` file, which is all ``train``, or
            ``reasoning-gym:TASK``.
        config: the configuration, of a data set that has several.
        split: its name.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: if it can't be read, or has no such split.
    """
    if path.startswith(PREFIX):
        if config is not None:
            raise ValueError(f"{path!r} has no configurations, got {config!r}")
        return generate(path, split)
    named = repr(path) if config is None else f"{path!r} (configuration {config!r})"
    file = path.endswith((".json", ".jsonl"))
    if file and not Path(path).is_file():
        raise FileNotFoundError(f"no file {named}")
    if file and config is not None:
        raise ValueError(f"the file {path!r} has no configurations, got {config!r}")
    try:
        data = load_dataset("json", data_files={"train": path}) if file else load_dataset(path, config)
    except (DatasetGenerationError, StopIteration) as error:  # the latter is what an empty file gives
        raise ValueError(f"{named} can't be read: {error.__cause__ or str(error) or 'it is empty'}") from error
    except (OSError, ValueError) as error:
        if file:
            raise ValueError(f"{named} can't be read: {error}") from error
        raise FileNotFoundError(f"no data set {named}, on the hub or as a folder: {error}") from error
    splits = cast("DatasetDict", data)
    if split not in splits:
        raise ValueError(f"{named} has no split {split!r}; it has {list(splits)}")
    return splits[split]


def questions_of(data: Dataset, numbers: list[int], benchmark: str, place: str, own: Conversations) -> list[Question]:
    """Rows as questions, with their full solutions.

    Args:
        data: a Dataset with columns of questions and answers.
        numbers: the rows'.
        benchmark: its name.
        place: where it is from, for messages.
        own: makes the prompts.
    """
    asked, answered = text_columns(data, place)
    rows = data.select(numbers)
    return ask(rows[asked][:], rows[answered][:], numbers, benchmark, own)


def ask(
    texts: list[str], references: list[str] | list[None], numbers: list[int], benchmark: str, own: Conversations
) -> list[Question]:
    """Texts as questions."""
    return [
        {"input_ids": ids, "idx": idx, "question": text, "reference": reference, "benchmark": benchmark}
        for ids, idx, text, reference in zip(own.prompts(texts), numbers, texts, references, strict=True)
    ]
