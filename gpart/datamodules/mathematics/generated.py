"""Questions with worked answers that the package reasoning-gym makes up: no download of data, and as many as wanted.

Invariant: the rows are a function of the task's name and the split alone, for one release of reasoning-gym; no test
question is a training question.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from datasets import Dataset

PREFIX = "reasoning-gym:"
TASKS = ("gsm_symbolic",)
"""reasoning-gym's tasks whose rows come with a worked answer that ends as GSM8K's do, ``#### N``."""

_SIZES = {"train": 4000, "test": 500}
_SEEDS = {"train": 1, "test": 2}


def generate(name: str, split: str) -> Dataset:
    """The rows of a task, with the columns question and answer.

    Args:
        name: ``reasoning-gym:TASK``.
        split: ``train`` (4,000 rows) or ``test`` (at most 500, without those whose question is a training question).

    Raises:
        ValueError: if there is no such task or split, or reasoning-gym is missing.
    """
    task = name.removeprefix(PREFIX)
    if task not in TASKS:
        raise ValueError(f"{name!r}: the tasks with worked answers are {', '.join(PREFIX + task for task in TASKS)}")
    if split not in _SIZES:
        raise ValueError(f"{name!r} has no split {split!r}; it has {list(_SIZES)}")
    if find_spec("reasoning_gym") is None:
        raise ValueError(f"{name!r} needs the package reasoning-gym: pip install 'gpart-lightning[math]'")
    rows = _rows(task, split)
    if split == "test":
        known = {question for question, _ in _rows(task, "train")}
        rows = [row for row in rows if row[0] not in known]
    return Dataset.from_dict({"question": [row[0] for row in rows], "answer": [row[1] for row in rows]})


@cache  # a fit asks for them several times, and they take seconds
def _rows(task: str, split: str) -> list[tuple[str, str]]:
    import reasoning_gym

    made = reasoning_gym.create_dataset(task, size=_SIZES[split], seed=_SEEDS[split])
    return [(row["question"], row["metadata"]["answer_cot"]) for row in made]
