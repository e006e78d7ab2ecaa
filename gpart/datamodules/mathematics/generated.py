"""Questions with worked answers that the package reasoning-gym generates, so that no data has to be downloaded.

Invariant: for one release of reasoning-gym, the rows depend only on the task's name and the split. No test question is
also a training question.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from datasets import Dataset

from gpart.errors import GPartError

PREFIX = "reasoning-gym:"
TASKS = ("gsm_symbolic",)
"""The tasks of reasoning-gym whose rows have a worked answer that ends as GSM8K's do, in ``#### N``."""

_SIZES = {"train": 4000, "test": 500}
_SEEDS = {"train": 1, "test": 2}


def generate(name: str, split: str) -> Dataset:
    """Generates the rows of a task, with the columns ``question`` and ``answer``.

    Args:
        name: ``reasoning-gym:TASK``.
        split: ``train`` (4,000 rows) or ``test`` (at most 500 rows, since training questions are left out).

    Raises:
        GPartError: if there is no such task or split, or reasoning-gym is not installed.
    """
    task = name.removeprefix(PREFIX)
    if task not in TASKS:
        raise GPartError(f"{name!r}: the tasks with worked answers are {', '.join(PREFIX + task for task in TASKS)}")
    if split not in _SIZES:
        raise GPartError(f"{name!r} has no split {split!r}; it has {list(_SIZES)}")
    if find_spec("reasoning_gym") is None:
        raise GPartError(f"{name!r} needs the package reasoning-gym: pip install 'gpart-lightning[math]'")
    rows = _rows(task, split)
    if split == "test":
        known = {question for question, _ in _rows(task, "train")}
        rows = [row for row in rows if row[0] not in known]
    return Dataset.from_dict({"question": [row[0] for row in rows], "answer": [row[1] for row in rows]})


@cache  # a fit asks for them several times, and making them takes seconds
def _rows(task: str, split: str) -> list[tuple[str, str]]:
    import reasoning_gym  # noqa: PLC0415  # an optional dependency

    made = reasoning_gym.create_dataset(task, size=_SIZES[split], seed=_SEEDS[split])
    return [(row["question"], row["metadata"]["answer_cot"]) for row in made]
