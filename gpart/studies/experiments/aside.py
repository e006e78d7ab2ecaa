"""Makes room in a run's folder, and keeps aside what a finished run left there until the new one has finished.

Invariant: at any time, even if the study is killed, what a finished run left is whole in the run's folder or beside it, until
a run has finished in its place. Nothing is removed or moved but folders that hold our command.json. The caller holds
the run's lock.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from gpart.errors import GPartError
from gpart.studies.experiments.outcome import read_made, read_object
from gpart.studies.experiments.plan import COMMAND_FILE, METRICS_FILE, Run


def make_room(run: Run) -> None:
    """Leaves a folder for the run that is there and holds our command.json at most.

    Raises:
        GPartError: if the folder, or the one beside it, is none of a study's runs; then nothing is removed.
    """
    _refuse_foreign(run.folder)
    if _is_whole(run.folder):
        _remove(run.before)
        run.folder.rename(run.before)
    run.folder.mkdir(exist_ok=True)
    _empty(run.folder)


def can_take_back(run: Run) -> bool:
    """Whether the run is not finished in its folder, and what was kept aside is what it would make again."""
    if read_made(run.folder, run.words).state == "finished":
        return False
    return read_made(run.before, run.words).state == "finished"


def take_back(run: Run) -> None:
    """Puts what was kept aside into the run's folder again, in place of what is there.

    Raises:
        GPartError: if the folder is none of a study's runs.
    """
    _remove(run.folder)
    run.before.rename(run.folder)


def drop(run: Run) -> None:
    """Removes what was kept aside, if the run has finished in its folder."""
    if _is_ours(run.before) and read_made(run.folder, run.words).state == "finished":
        _remove(run.before)


def note(run: Run) -> str:
    """What to add to a message about a run that is not finished: where the earlier results are; empty if there are none."""
    return f"; what had finished before is kept in {run.before}" if _is_whole(run.before) else ""


def _is_whole(folder: Path) -> bool:
    """Whether a finished run is in it, whatever its words were."""
    command, metrics = (read_object(folder / name) or {} for name in (COMMAND_FILE, METRICS_FILE))
    return "words" in command and "failed" not in command and metrics.get("state") == "tested"


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    # A study that was killed while it wrote its first command.json left nothing but the unfinished file.
    unfinished = all(entry.name.startswith(f".{COMMAND_FILE}.") for entry in folder.iterdir())
    return unfinished or "words" in (read_object(folder / COMMAND_FILE) or {})


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not _is_ours(folder):
        raise GPartError(
            f"{folder} is there and no run of a study (it has no {COMMAND_FILE} of one); nothing was removed"
        )


def _remove(folder: Path) -> None:
    """Removes a folder of ours, if it is there."""
    _refuse_foreign(folder)
    if folder.exists():
        _empty(folder)
        (folder / COMMAND_FILE).unlink(missing_ok=True)
        folder.rmdir()


def _empty(folder: Path) -> None:
    # The scores go first, so that half a folder is never taken for a finished run.
    (folder / METRICS_FILE).unlink(missing_ok=True)
    for entry in folder.iterdir():
        if entry.name == COMMAND_FILE:
            continue  # so that the folder is still recognised as ours if this is stopped half way
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
