"""What is measured: a method on an architecture before any training, or what a run has left on disk.

Invariant: a subject's points are in the order of their steps; the first is the start where a run kept it. Of an architecture no
weights are read, since no method's Jacobian depends on W0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

import gpart.lightning_modules  # noqa: F401  # Lightning builds a checkpoint's class only where it is imported
from gpart import GPartConfig, attach
from gpart.assets.fetching import resolve
from gpart.bases.own_classes import why_not
from gpart.callbacks import load_from_checkpoint
from gpart.callbacks.snapshots import FOLDER as SNAPSHOTS
from gpart.errors import GPartError, GPartFileError
from gpart.injection.names import get_submodule, unwrapped
from gpart.injection.targets import plan
from gpart.serialization.checkpoint_file import CHECKPOINT_KEY, load_checkpoint_file
from gpart.studies import architectures
from gpart.studies.architectures import build, default_head, default_targets, find_task
from gpart.studies.counting.params import PEFT, Settings, apply_peft
from gpart.studies.finished_run import seed_generators
from gpart.studies.found_run import CONFIG
from gpart.studies.isometry.vector import NotFiniteError, Trainable, find_trainable

GPART: dict[str, dict[str, Any]] = {
    "gpart": {},
    "gpart-non-isometric": {"isometric": False},
    "gpart-hash": {"projection": "hash"},
    "gpart-fastfood": {"projection": "fastfood"},
}
METHODS = (*GPART, *PEFT)
"""As the overlays and ``gpart bench`` name them."""


@dataclass(frozen=True)
class Point:
    """The trainable vector after a number of steps."""

    step: int
    vector: Tensor


@dataclass(frozen=True)
class Subject:
    """What a row of the table is about."""

    name: str
    trainable: Trainable
    points: tuple[Point, ...]
    training: Mapping[str, Any]
    """Of a run: its module's ``lr`` and ``weight_decay``, where it has them."""


def of_model(name: str, methods: Sequence[str], sizes: Settings, seed: int) -> Iterator[Subject]:
    """The methods on an architecture, as they start.

    Args:
        name: as :func:`gpart.studies.architectures.config` takes it, or ``packaged:NAME``.
        methods: of :data:`METHODS`.
        sizes: each method's size and what is adapted.
        seed: of what a method draws for its start, and of GPart's projection.

    Raises:
        GPartError: if there is no such model or method, or a setting does not fit.
    """
    if unknown := [method for method in methods if method not in METHODS]:
        raise GPartError(f"there is no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    config = architectures.config(resolve(name))
    task = find_task(config) if sizes.task == "auto" else sizes.task
    config.num_labels = sizes.num_labels
    hollow = build(config, task)
    head = default_head(hollow, task) if sizes.modules_to_save is None else sizes.modules_to_save
    targets = default_targets(hollow, task) if sizes.target_modules is None else sizes.target_modules
    planned = plan(hollow, GPartConfig(sizes.d, targets, modules_to_save=head))
    layers = list(dict.fromkeys(weight.owners[0][0] for weight in planned.weights))
    for method in methods:
        torch.manual_seed(seed)
        model = build(config, task, "cpu")
        if method in GPART:
            attach(model, GPartConfig(sizes.d, targets, modules_to_save=head, seed=seed, **GPART[method]))
        else:
            apply_peft(method, sizes, layers, head, model)
        yield replace(_subject(method, model, 0, {}), name=method)


def find_runs(folder: Path) -> dict[str, list[Path]]:
    """The runs below a folder, by where they stand in it, with their checkpoints.

    A run is a folder with ``snapshots``; without any it is a folder that has checkpoints in it.

    Example:
        >>> find_runs(Path("gpart"))
        {}
    """
    files = sorted(folder.rglob("*.ckpt"))
    with_snapshots = {file.parent.parent for file in files if file.parent.name == SNAPSHOTS}
    runs: dict[Path, list[Path]] = {}
    for file in files:
        run = next((above for above in file.parents if above in with_snapshots), None)
        if run is None:
            runs.setdefault(file.parent, []).append(file)
        elif file.parent == run / SNAPSHOTS:
            runs.setdefault(run, []).append(file)
    return dict(zip(_labels(folder, list(runs)), runs.values(), strict=True))


def _labels(folder: Path, runs: Sequence[Path]) -> list[str]:
    """Where each run stands below the folder, without what Lightning adds and without what is the same for all.

    Where that leaves two runs one label, each has its whole path below the folder.
    """
    inner = [
        [part for part in run.relative_to(folder).parts if part not in ("lightning_logs", "checkpoints")]
        for run in runs
    ]
    if len(runs) > 1 and len({len(parts) for parts in inner}) == 1:
        kept = [len(set(column)) > 1 for column in zip(*inner, strict=True)]
        inner = [list(compress(parts, kept)) for parts in inner]
    labels = ["/".join(parts) or folder.resolve().name for parts in inner]
    return labels if len(set(labels)) == len(labels) else [run.relative_to(folder).as_posix() for run in runs]


def of_run(name: str, files: Sequence[Path]) -> Subject:
    """What a run has left: its module is built once, from the first file, and the others give the vector.

    Raises:
        GPartFileError: if there is no checkpoint.
        NoAdapterError: if its method is none.
        NotFiniteError: if it has diverged.
        GPartError: if one cannot be read, or its method is none whose map is known.
    """
    if not files:
        raise GPartFileError(f"{name}: no checkpoints (*.ckpt)")
    by_step: dict[int, dict[str, Any]] = {}
    for file in files:
        content = load_checkpoint_file(file)
        if not isinstance(content.get("global_step"), int):
            raise GPartError(f"{file} is no checkpoint of a Lightning Trainer: it has no global_step")
        by_step[content["global_step"]] = content  # the last and the best one are often the same
    first = min(by_step)
    path_of_config, config = _config_of(files[0], by_step[first])
    # Lightning imports no class because a checkpoint asks for it.
    if path_of_config is not None and (why := why_not(config["model"]["class_path"])):
        raise GPartError(f"{path_of_config}: model: {why}")
    try:
        with isolate_rng():
            seed_generators(config.get("seed_everything"))  # a class of one's own may draw its frozen weights
            module = load_from_checkpoint(LightningModule, files[0], map_location="cpu")  # its class stands in the file
    except ValueError as error:  # which Lightning raises for a class of a module that nobody has imported
        if isinstance(error, GPartError):
            raise
        raise GPartError(f"{name}: {error}") from error
    path = by_step[first][CHECKPOINT_KEY]["module"]
    network = get_submodule(module, path) if path else module
    trainable = find_trainable(unwrapped(network))
    prefix = f"{path}." if path else ""
    points = []
    for step, content in sorted(by_step.items()):
        state = {key.removeprefix(prefix): value for key, value in content["state_dict"].items()}
        points.append(Point(step, vector := trainable.vector(state)))
        if not vector.isfinite().all():
            raise NotFiniteError(
                f"{name}: at step {step} what is trained is not finite, so there is no Jacobian to measure"
            )
    settings = by_step[first].get("hyper_parameters") or {}
    training = {key: settings[key] for key in ("lr", "weight_decay") if key in settings}
    return Subject(name, trainable, tuple(points), training)


def _config_of(file: Path, content: Mapping[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """The config.yaml of a checkpoint's run and what it holds, if it names the class that the checkpoint asks for."""
    asked = (content.get("hyper_parameters") or {}).get("_class_path")
    above = [folder / CONFIG for folder in file.resolve().parents[:3]]
    for path in (*above, *file.resolve().parents[1].glob(f"*/*/{CONFIG}")):  # the latter where it is a snapshot
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            if asked and config["model"]["class_path"] == asked:
                return path, config
        except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
            continue  # it is that of something else
    return None, {}


def _subject(name: str, network: nn.Module, step: int, training: Mapping[str, Any]) -> Subject:
    trainable = find_trainable(network)
    vector = trainable.vector(dict(network.named_parameters()))
    return Subject(name, trainable, (Point(step, vector),), training)
