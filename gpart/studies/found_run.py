"""A finished run of ``gpart fit`` or ``gpart study``, found in its folder: its configuration and its best checkpoint.

Invariant: nothing in the run's folder is changed. The steps in the checkpoints tell which one is the last, since a copy of
the folder does not keep when each was written.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from gpart.errors import GPartError, GPartFileError
from gpart.serialization.checkpoint_file import load_checkpoint_file

CONFIG = "config.yaml"
"""What LightningCLI writes a run's whole configuration to, beside the folder ``checkpoints``."""


@dataclass(frozen=True)
class FinishedRun:
    """Where a run's configuration and the checkpoint to look at are."""

    config: Path
    checkpoint: Path
    digest: str
    """A hash of what both files hold."""


def find_run(path: str | Path) -> FinishedRun:
    """Finds a run by its folder or its checkpoint.

    Args:
        path: the run's folder (its ``trainer.default_root_dir``, or a version's), or one of its ``.ckpt`` files. Of a
            folder it is the last run in it, and of that the best checkpoint, as its first ModelCheckpoint with a
            ``monitor`` chose it.

    Raises:
        GPartFileError: if there is no such folder, or no finished run in it.
    """
    path = Path(path)
    if path.is_file():
        above = next((one for one in path.resolve().parents[:3] if (one / CONFIG).is_file()), None)
        if above is None:
            raise GPartFileError(
                f"{path}: no {CONFIG} of 'gpart fit' in the folders above it, from which to build the model"
            )
        return _run(above / CONFIG, path)
    if not path.is_dir():
        raise GPartFileError(f"no run at {path}: give the folder of a run of 'gpart fit' or 'gpart study', or a .ckpt")
    found = [
        (max(one.stat().st_mtime for one in files), config, files)
        for config in path.rglob(CONFIG)
        if (files := list(config.parent.glob("checkpoints/*.ckpt")))
    ]
    if not found:
        raise GPartFileError(f"{path} holds no finished run: there is no {CONFIG} with checkpoints/*.ckpt beside it")
    if len({config.parent.parent for _, config, _ in found}) > 1:
        raise GPartError(
            f"{path} holds several runs, {sorted(str(config.parent) for _, config, _ in found)[:4]}: name one"
        )
    _, config, files = max(found)
    return _run(config, _best(files))


def _run(config: Path, checkpoint: Path) -> FinishedRun:
    content = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in (config, checkpoint))
    return FinishedRun(config, checkpoint, hashlib.sha256(content).hexdigest()[:16])


def _best(files: list[Path]) -> Path:
    """The checkpoint that a ModelCheckpoint calls the best; the last where none does, or that one is gone.

    The last is that of the most steps: when a file was written, a copy of the run's folder no longer tells.
    """
    known = [(*_step_and_best(file), file.stat().st_mtime, file.name, file) for file in files]
    _, names, _, _, last = max(known, key=lambda one: (one[0], *one[2:4]))
    there = {one.name: one for one in files}
    return next((there[name] for name in names if name in there), last)


def _step_and_best(file: Path) -> tuple[int, list[str]]:
    """A checkpoint's step, and the names of those that its ModelCheckpoints called the best, in the order to ask them.

    Those that watch a metric come first, each kind in the order of the run's callbacks: without one the best is the last.
    """
    content = load_checkpoint_file(str(file))
    states = (content.get("callbacks") or {}).values()
    named = [state for state in states if isinstance(state, dict) and state.get("best_model_path")]
    named.sort(key=lambda state: state.get("monitor") is None)
    return int(content.get("global_step") or 0), [Path(state["best_model_path"]).name for state in named]
