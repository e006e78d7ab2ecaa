"""Where a benchmark's questions come from, by the settings of the DataModule.

Invariant: a file holds test questions and nothing else, so that none of them chooses a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from gpart.datamodules.mathematics.generated import PREFIX, TASKS
from gpart.datamodules.mathematics.sources import BENCHMARKS, Benchmark, is_file, load_split
from gpart.errors import GPartError


def place_of(settings: Mapping[str, Any], name: str) -> str:
    """The name, folder or file of a benchmark's data.

    Example:
        >>> place_of({"math": "MATH.jsonl"}, "math"), place_of({}, "gsm_symbolic")
        ('MATH.jsonl', 'reasoning-gym:gsm_symbolic')
    """
    return f"{PREFIX}{name}" if name in TASKS else str(settings[name])


def load_benchmark(settings: Mapping[str, Any], name: Benchmark, split: str) -> Dataset:
    """Loads a split of a benchmark.

    Args:
        settings: those of the DataModule: ``gsm8k``, ``gsm8k_config`` and so on.
        name: the benchmark.
        split: ``test``, or ``train``, of which validation may ask questions.

    Raises:
        GPartFileError: if there is no such data.
        GPartError: if it can't be read, or a file is asked for training questions.
    """
    place = place_of(settings, name)
    if split != "test" and is_file(place):
        raise GPartError(
            f"val_questions_of={name!r} asks its training split, and {place!r} is a file of test questions"
        )
    config = None if name in TASKS else settings[f"{name}_config"]
    return load_split(place, BENCHMARKS[name] if config is None and not is_file(place) else config, split)
