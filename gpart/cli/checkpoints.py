"""Which file ``--ckpt_path last`` and ``best`` mean: of the newest run in the run's own folder.

Lightning looks in the folder of the new run, which is empty, and then trains from the start.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpart.errors import GPartError
from gpart.serialization.checkpoint_file import load_checkpoint_file
from gpart.serialization.locations import below, is_file, is_folder, located, readable

_STATE = b"optimizer_states"
"""The key that Lightning leaves out where weights alone are written."""

NAMES = ("last", "best")
"""What stands for a checkpoint."""


def find_checkpoint(name: str, trainer: Mapping[str, Any]) -> str:
    """The path of the newest checkpoint below a run's folders, or of the best one that it knows.

    Files of weights alone (``SnapshotWriter``, ``save_weights_only``) count only where there is no other: fit cannot go on
    from them, and they know no best one.

    Args:
        name: ``last`` or ``best``.
        trainer: the Trainer's settings: ``default_root_dir``, the callbacks' ``dirpath`` and the loggers' ``save_dir``
            name the folders, which may be URLs.

    Raises:
        GPartError: if there is no checkpoint, or the newest knows no best one.
    """
    folders = list(dict.fromkeys(located(folder) for folder in _folders(trainer)))
    found = [one for folder in folders for one in below(folder, ".ckpt")]
    if not found:
        raise GPartError(
            f"--ckpt_path {name}: there is no checkpoint in {', '.join(map(str, folders))}: give a path, or the"
            " --trainer.default_root_dir of the run"
        )
    paths = [path for _, path in sorted(found, key=lambda one: one[0], reverse=True)]
    newest = next(filter(_is_whole, paths), paths[0])
    return str(newest if name == "last" else _best(newest))


def _folders(trainer: Mapping[str, Any]) -> Iterator[str]:
    root = trainer.get("default_root_dir")
    # Without one, not the whole working directory, which may be anything.
    yield from ("lightning_logs", "checkpoints") if root is None else (str(root),)
    loggers = trainer.get("logger")
    for part in [*(trainer.get("callbacks") or ()), *(loggers if isinstance(loggers, list) else [loggers])]:
        settings = part.get("init_args") if hasattr(part, "get") else None
        for key in ("dirpath", "save_dir"):
            if settings and settings.get(key) is not None:
                yield str(settings[key])


def _is_whole(path: Path | str) -> bool:
    """Whether a checkpoint has more than weights; also where that cannot be told, so that its reader says what is wrong."""
    try:
        with zipfile.ZipFile(readable(path)[0]) as archive:
            entry = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            return _STATE in archive.read(entry)  # the keys, without the tensors
    except (GPartError, OSError, zipfile.BadZipFile, StopIteration):  # a folder, as of FSDP; damaged
        return True


def _best(newest: Path | str) -> Path | str:
    states = (load_checkpoint_file(newest).get("callbacks") or {}).values()
    # One without a monitor keeps the last one, not the best.
    keepers = [state for state in states if isinstance(state, Mapping) and "best_model_path" in state]
    keepers = [state for state in keepers if state.get("monitor")]
    named = [state["best_model_path"] for state in keepers if state["best_model_path"]]
    for best in named:
        # The run's folder may have been moved: then it lies beside the newest.
        name = Path(best).name
        beside = newest.with_name(name) if isinstance(newest, Path) else f"{newest.rpartition('/')[0]}/{name}"
        for place in map(located, (best, beside)):
            if is_file(place) or is_folder(place):
                return place
    if not keepers:
        why = "is of a run that chose none by a score (no ModelCheckpoint with a monitor): --ckpt_path last, or"
    elif not named:
        why = f"was written before one was kept by {keepers[0]['monitor']}: --ckpt_path last, or"
    else:
        why = f"knows no best one that is there (it names {named}):"
    raise GPartError(f"--ckpt_path best: {newest}, the newest checkpoint, {why} give a path")
