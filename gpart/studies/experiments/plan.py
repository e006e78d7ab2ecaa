"""Makes a study's list of runs: their command lines and their folders.

Invariant: a run's command line and folder depend on the study's file alone. So any process, on any machine and at any
time, has the same run in the same folder. This module knows no adapter and no task, only words of a command line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gpart.errors import GPartError
from gpart.studies.experiments.recipes import OWN_FOLDER
from gpart.studies.experiments.study import AxisValue, Study, value_text

COMMAND_FILE = "command.json"
METRICS_FILE = "metrics.json"
LOG_FILE = "log.txt"
_LONGEST_NAME = 120
"""The largest number of characters in a folder's name."""
_MOST_BYTES = 255
"""The largest number of bytes in a folder's name, as file systems have it."""


@dataclass(frozen=True)
class Run:
    """One run of a study, in a process of its own."""

    name: str
    labels: Mapping[str, str]
    """The label of its value on each axis."""
    tuned: Mapping[str, Any]
    """The candidate's settings; empty if nothing is tuned."""
    seed: int
    metric: str
    """The name of the score: what the test logs as ``test/NAME``, or as NAME."""
    folder: Path
    words: tuple[str, ...]
    """The words of its command line, after ``gpart``."""

    @property
    def before(self) -> Path:
        """Where what a finished run left in its folder is kept until the new run has finished."""
        return self.folder.with_name(f"{self.folder.name}.before")


@dataclass(frozen=True)
class Candidate:
    """One combination of the tuned settings, with a run for each seed, in the order of the study's seeds."""

    tuned: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def text(self) -> str:
        """The settings as a text, such as ``model.lr=0.005``; empty if nothing is tuned."""
        return _text(self.tuned)


@dataclass(frozen=True)
class Cell:
    """One combination of values, one from each axis."""

    name: str
    labels: Mapping[str, str]
    candidates: tuple[Candidate, ...]
    """At least one. If there are several, the runs with the first seeds decide which one gets the other seeds."""
    deciding: int
    """The number of those first seeds; 0 if there is one candidate."""


def plan(study: Study) -> list[Cell]:
    """Makes all cells of a study, in the order of its file. The value of the last axis changes fastest.

    Raises:
        GPartError: if two runs would have the same folder, two axes tune the same setting, or a setting that takes the
            run's seed has another value as well.
    """
    for axis in study.axes:
        _distinct((value.label for value in axis.values), f"axes.{axis.name}")
    return [_cell(study, values) for values in product(*(axis.values for axis in study.axes))]


def shard_of(cells: Sequence[Cell], part: int, parts: int) -> list[Cell]:
    """Returns one shard of the cells: every ``parts``-th cell, starting with number ``part``.

    Cells stay whole, since a cell's candidates are compared before its other seeds are run.

    Args:
        cells: all cells of the study.
        part: the number of the shard, counted from 1.
        parts: the number of shards.

    Raises:
        GPartError: if there is no such shard.
    """
    if not 1 <= part <= parts:
        raise GPartError(f"shard {part}/{parts}: the first number goes from 1 to the second")
    return list(cells[part - 1 :: parts])


def safe_name(label: str) -> str:
    """Turns a label into a name for a folder.

    Example:
        >>> safe_name("GPart (d = 1/2)"), safe_name("model.lr=0.005")
        ('GPart-d-=-1-2', 'model.lr=0.005')
    """
    name = re.sub(r"[^\w.,=+-]+", "-", label).strip("-.")
    if len(name) > _LONGEST_NAME or len(name.encode()) > _MOST_BYTES:
        # Two long names may differ at their ends only, so that a hash of the whole label is appended.
        cut = name[: _LONGEST_NAME - 9].encode()[: _MOST_BYTES - 9].decode(errors="ignore")
        name = f"{cut}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    return name


def _cell(study: Study, values: Sequence[AxisValue]) -> Cell:
    labels = {axis.name: value.label for axis, value in zip(study.axes, values, strict=True)}
    name = " / ".join(labels.values())
    configs = [*study.config, *(config for value in values for config in value.config)]
    settings = [*study.settings.items(), *(item for value in values for item in value.settings.items())]
    words = ["fit", *(f"--config={config}" for config in configs), *map(_setting, settings)]
    metric = next(value.metric for value in values if value.metric is not None)
    folder = study.folder.joinpath(*(safe_name(value.label) for value in values))
    tune: dict[str, tuple[Any, ...]] = {}
    for value in values:
        if both := tune.keys() & value.tune.keys():
            raise GPartError(f"cell {name}: {sorted(both)} is tuned on two axes")
        tune |= value.tune
    seeded = list(dict.fromkeys([*study.seeded, *(key for value in values for key in value.seeded)]))
    if both := set(seeded) & {*tune, *(key for key, _ in settings)}:
        raise GPartError(f"cell {name}: {sorted(both)} would take the run's seed, and is set or tuned as well")
    candidates = []
    for chosen in product(*tune.values()):
        tuned = dict(zip(tune, chosen, strict=True))
        text = _text(tuned)
        inner = folder / safe_name(text) if tuned else folder
        runs = (
            Run(
                name=" / ".join(filter(None, (name, text, f"seed {seed}"))),
                labels=labels,
                tuned=tuned,
                seed=seed,
                metric=metric,
                folder=inner / f"seed-{seed}",
                words=(
                    *words,
                    *map(_setting, tuned.items()),
                    *(_setting((key, seed)) for key in seeded),
                    *_own_words(seed, inner / f"seed-{seed}"),
                ),
            )
            for seed in study.seeds
        )
        candidates.append(Candidate(tuned, tuple(runs)))
    if tune:
        _distinct((candidate.text for candidate in candidates), f"cell {name}: tune")
    return Cell(name, labels, tuple(candidates), study.tune_seeds if len(candidates) > 1 else 0)


def _text(tuned: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value_text(value)}" for key, value in tuned.items())


def _own_words(seed: int, folder: Path) -> list[str]:
    return [
        f"--seed_everything={seed}",
        f"--trainer.default_root_dir={folder.as_posix()}",
        "--trainer.callbacks+=MetricsWriter",
        f"--trainer.callbacks.path={(folder / METRICS_FILE).as_posix()}",
        "--test_best=true",
        "--trainer.enable_progress_bar=false",
        OWN_FOLDER,
    ]


def _setting(item: tuple[str, Any]) -> str:
    key, value = item
    return f"--{key}={value_text(value)}"


def _distinct(labels: Iterable[str], where: str) -> None:
    seen: dict[str, str] = {}
    for label in labels:
        name = safe_name(label)
        if not name:
            raise GPartError(f"{where}: nothing of {label!r} can stand in a folder's name")
        key = name.casefold()  # two names that differ in case are one folder on macOS and Windows
        if key in seen:
            raise GPartError(f"{where}: {seen[key]!r} and {label!r} would share the folder {name}")
        seen[key] = label
