"""Runs a study's processes, one after the other.

Invariant: at any time at most one process works in a run's folder, and that folder holds the outputs of one process
only. A lock per run keeps other studies out; the run's process inherits it, so that it lasts as long as that process
does, also where the study above it was killed. A folder is emptied only if it carries our command.json.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from gpart.serialization.atomic import replacing
from gpart.studies.experiments.outcome import choose, no_score, read_object, read_outcome
from gpart.studies.experiments.plan import COMMAND_FILE, LOG_FILE, METRICS_FILE, Cell, Run

COMMAND = (sys.executable, "-m", "gpart.cli")
GRACE = 30.0
"""Seconds that a run has to end after it was asked to."""
_TAIL = 2**16
"""Bytes at a log's end in which its last words are looked for."""
_LONGEST_LINE = 300


@dataclass(frozen=True)
class Event:
    """Something to tell of a run.

    ``started`` comes before each run that is started. A run ends as ``finished``; ``kept``, where it was finished
    before; ``locked``, where another process works on it; ``failed``, also where it has no score; ``skipped``, where
    its cell has no choice. ``unchosen`` is a cell whose candidates finished without a validation score.
    """

    kind: Literal["started", "finished", "kept", "locked", "failed", "skipped", "unchosen"]
    name: str
    text: str = ""


Tell = Callable[[Event], None]


def count_runs(cells: Sequence[Cell]) -> int:
    """How many runs the cells need: each candidate once, and the chosen one with the other seeds."""
    return sum(len(cell.candidates) + len(cell.candidates[0].runs) - 1 for cell in cells)


def run_cells(cells: Sequence[Cell], tell: Tell, command: Sequence[str] = COMMAND) -> None:
    """Runs what is not finished. A run that fails is told of and does not stop the others.

    Args:
        cells: the study's, or a shard's.
        tell: is called for every start and every end.
        command: what a run's words are appended to.
    """
    for cell in cells:
        for candidate in cell.candidates:
            _run_once(candidate.runs[0], tell, command)
        firsts = [read_outcome(candidate.runs[0]) for candidate in cell.candidates]
        chosen, why = choose(cell, firsts)
        if chosen is not None:
            for run in chosen.runs[1:]:
                _run_once(run, tell, command)
            continue
        settled = all(first.state in ("finished", "failed") for first in firsts)
        if settled and any(first.state == "finished" for first in firsts):
            tell(Event("unchosen", cell.name, why))  # else it has been told: all failed, or others are at work
        for run in cell.candidates[0].runs[1:]:
            tell(Event("skipped", f"{cell.name} / seed {run.seed}", why))


def _run_once(run: Run, tell: Tell, command: Sequence[str]) -> None:
    try:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, not in it: the folder's content is removed while the lock is held.
        lock = FileLock(run.folder.with_name(f"{run.folder.name}.lock"))
        with lock.acquire(blocking=False):
            tell(_locked_run(run, tell, command, lock))
    except Timeout:
        tell(Event("locked", run.name, "another process is at it"))
    except OSError as error:
        tell(Event("failed", run.name, f"{type(error).__name__}: {error}"))


def _locked_run(run: Run, tell: Tell, command: Sequence[str], lock: FileLock) -> Event:
    # Read under the lock: another study may have finished it since.
    before = read_outcome(run)
    kind: Literal["kept", "finished"] = "kept"
    if before.state != "finished":
        if (foreign := _clear(run.folder)) is not None:
            return Event("failed", run.name, foreign)
        tell(Event("started", run.name, "again, as its words have changed" if before.state == "stale" else ""))
        why = _process(run, command, lock)
        if why is not None:
            _write_command(run, command, failed=why)
            return Event("failed", run.name, why)
        before, kind = read_outcome(run), "finished"
    unscored = no_score(run, before)
    return Event(kind, run.name) if unscored is None else Event("failed", run.name, unscored)


def _clear(folder: Path) -> str | None:
    """Removes what an earlier process left; returns why not, where the folder is not ours."""
    if not folder.exists():
        folder.mkdir()
        return None
    entries = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    # A study that was killed while it wrote the first command.json left its unfinished form alone.
    unfinished = all(entry.name.startswith(f".{COMMAND_FILE}.") for entry in entries)
    if not unfinished and "words" not in (read_object(folder / COMMAND_FILE) or {}):
        return f"{folder} is there and no run of a study (it has no {COMMAND_FILE} of one); nothing was removed"
    for entry in entries:
        if entry.name == COMMAND_FILE:
            continue  # the folder stays recognisable, should this be stopped half way
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return None


def _process(run: Run, command: Sequence[str], lock: FileLock) -> str | None:
    """Runs the process; returns why it failed, or None."""
    _write_command(run, command)
    log_file = run.folder / LOG_FILE
    with open(log_file, "wb") as log:
        try:
            child = subprocess.Popen(
                [*command, *run.words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Its lines are in the log when they are said, and still there when it is killed.
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                pass_fds=_descriptors(lock),
            )
        except OSError as error:
            return f"{shlex.join(command)} cannot be started: {error}"
        try:
            status = child.wait()
        except BaseException:
            _stop(child)
            raise
    if status < 0:
        what = f"ended by {signal.Signals(-status).name}"
    elif status > 0:
        what = f"exit status {status}"
    elif read_outcome(run).state != "finished":
        metrics = read_object(run.folder / METRICS_FILE)
        what = (
            f"no {METRICS_FILE}"
            if metrics is None
            else f"state {metrics.get('state')!r} in {METRICS_FILE}, not 'tested'"
        )
    else:
        return None
    return f"{what}; {_last_words(log_file)} (log: {log_file})"


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Asks a process to end, and ends it if it does not or if the user insists."""
    child.terminate()
    try:
        child.wait(timeout=GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise


def _descriptors(lock: FileLock) -> tuple[int, ...]:
    # filelock has no public name for it; Windows passes no descriptors on.
    descriptor = getattr(getattr(lock, "_context", None), "lock_file_fd", None)
    return (descriptor,) if os.name == "posix" and isinstance(descriptor, int) else ()


def _write_command(run: Run, command: Sequence[str], failed: str | None = None) -> None:
    content: dict[str, Any] = {"words": list(run.words), "command": shlex.join([*command, *run.words])}
    if failed is not None:
        content["failed"] = failed
    with replacing(run.folder / COMMAND_FILE) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def _last_words(log: Path) -> str:
    """The log's last ``gpart: error:`` line, else its last line."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("gpart: error:")]
    return (errors or said or ["it said nothing"])[-1][:_LONGEST_LINE]
