"""Which file ``--ckpt_path last`` and ``best`` mean: of the newest run in the run's own folder.

Lightning looks in the folder of the new run, which is empty, and then trains from the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpart.errors import GPartError
from gpart.serialization.checkpoint_file import load_checkpoint_file

NAMES = ("last", "best")
"""What stands for a checkpoint."""


def find_checkpoint(name: str, trainer: Mapping[str, Any]) -> str:
    """The path of the newest checkpoint below a run's folders, or of the best one that it knows.

    Args:
        name: ``last`` or ``best``.
        trainer: the Trainer's settings, of which ``default_root_dir`` and the callbacks' ``dirpath`` name the folders.

    Raises:
        GPartError: if there is no checkpoint, or the newest knows no best one.
    """
    folders = list(dict.fromkeys(_folders(trainer)))
    found = [path for folder in folders for path in folder.rglob("*.ckpt")]
    if not found:
        raise GPartError(
            f"--ckpt_path {name}: there is no checkpoint in {', '.join(map(str, folders))}: give a path, or the"
            " --trainer.default_root_dir of the run"
        )
    newest = max(found, key=lambda path: path.stat().st_mtime_ns)
    return str(newest if name == "last" else _best(newest))


def _folders(trainer: Mapping[str, Any]) -> Iterator[Path]:
    root = trainer.get("default_root_dir")
    if root is not None:
        yield Path(root)
    else:  # not the whole working directory, which may be anything
        yield from (Path("lightning_logs"), Path("checkpoints"))
    for callback in trainer.get("callbacks") or ():
        dirpath = (callback.get("init_args") or {}).get("dirpath")
        if dirpath is not None:
            yield Path(dirpath)


def _best(newest: Path) -> Path:
    states = load_checkpoint_file(newest).get("callbacks") or {}
    # One without a monitor keeps the last one, not the best.
    keepers = [
        state for key, state in states.items() if str(key).startswith("ModelCheckpoint") and state.get("monitor")
    ]
    known = [state["best_model_path"] for state in keepers]
    for best in filter(None, known):
        # The run's folder may have been moved: then it lies beside the newest.
        for path in (Path(best), newest.with_name(Path(best).name)):
            if path.exists():
                return path
    raise GPartError(
        f"--ckpt_path best: {newest}, the newest checkpoint, knows no best one that is there (it names {known}): give a path"
    )
