"""Makes one run of a study: ``cells.py`` one after the other, ``ray_engine.py`` each in a worker of Ray.

Invariant: at any time, at most one process works in a run's folder, and the folder holds the outputs of one process
only. A lock for each run keeps other studies out. The run's process inherits the lock, so that the lock lasts as long
as the process does, even if the study that started it is killed. What a finished run left is removed only when another
has finished in its place (``aside.py``).
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from filelock import BaseFileLock, FileLock, Timeout

from gpart.errors import GPartError
from gpart.serialization.atomic import replacing
from gpart.studies.experiments import aside
from gpart.studies.experiments.last_words import last_words
from gpart.studies.experiments.outcome import Outcome, no_score, read_made, read_object
from gpart.studies.experiments.plan import COMMAND_FILE, LOG_FILE, METRICS_FILE, Run
from gpart.studies.experiments.processes import Child, start
from gpart.studies.experiments.recipes import contents

GRACE = 30.0
"""The number of seconds that a run has to end after it was asked to."""


@dataclass(frozen=True)
class Event:
    """Something to report about a run or a cell.

    ``started`` is reported before a run starts, ``waiting`` before another process is waited for that works on it. In the
    end, one of these is reported for each run:

    - ``finished``: it has finished.
    - ``kept``: it was finished before, and is not run again.
    - ``locked``: another process works on it, and was not waited for.
    - ``failed``: it failed, or it has no score.
    - ``skipped``: it is not made, since no candidate of its cell is selected.

    ``unchosen`` is reported for a cell whose candidates finished without a validation score.
    """

    kind: Literal["started", "waiting", "finished", "kept", "locked", "failed", "skipped", "unchosen"]
    name: str
    text: str = ""


Tell = Callable[[Event], None]


def run_once(run: Run, tell: Tell, command: Sequence[str], patience: float = 0, bound: bool = False) -> Event:
    """Makes a run, unless it is finished or another process works on it.

    Args:
        run: the run.
        tell: a function that is called with ``started``.
        command: the command that the run's words are appended to.
        patience: the seconds that another process is waited for; -1 for as long as it takes.
        bound: whether its process ends with this one.

    Returns:
        The run's last event.
    """
    last: list[Event] = []
    with _reporting(run, last.append), _lock(run).acquire(timeout=patience) as held:
        last.append(_locked_run(run, tell, command, held, bound))
    return last[-1]


def settled(run: Run, tell: Tell) -> bool:
    """Whether there is nothing to make, which is reported. Else its folder is there, and holds our command.json at most."""
    with _reporting(run, tell), _lock(run).acquire(timeout=0):
        if (kept := _kept(run)) is None:
            aside.make_room(run)
            return False
        tell(kept)
    return True


def drop_before(run: Run) -> None:
    """Removes what was kept aside from a run's folder if it has finished; leaves it to the next study if it can't."""
    with suppress(Timeout, OSError), _lock(run).acquire(timeout=0):
        aside.drop(run)


def _lock(run: Run) -> FileLock:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    # The lock file is beside the folder, since the folder's content is removed while the lock is held.
    return FileLock(run.folder.with_name(f"{run.folder.name}.lock"))


@contextmanager
def _reporting(run: Run, tell: Tell) -> Iterator[None]:
    """Reports a lock that another process holds, a folder that is not ours, and an error of a file."""
    try:
        yield
    except Timeout:
        tell(Event("locked", run.name, "another process is at it"))
    except GPartError as error:
        tell(Event("failed", run.name, str(error)))
    except OSError as error:
        tell(Event("failed", run.name, f"{type(error).__name__}: {error}"))


def _ended(kind: Literal["kept", "finished"], run: Run, outcome: Outcome) -> Event:
    unscored = no_score(run, outcome)
    return Event(kind, run.name) if unscored is None else Event("failed", run.name, unscored)


def _locked_run(run: Run, tell: Tell, command: Sequence[str], lock: BaseFileLock, bound: bool) -> Event:
    # The outcome is read under the lock, since another study may have finished the run in the meantime.
    if (kept := _kept(run)) is not None:
        return kept
    before = read_made(run.folder, run.words)
    aside.make_room(run)
    tell(Event("started", run.name, f"again, as {before.why}{aside.note(run)}" if before.state == "stale" else ""))
    content = _command_of(run, command)
    _write_command(run, content)
    why = _process(run, command, lock, bound)
    if why is not None:
        _write_command(run, content | {"failed": why})
        return Event("failed", run.name, why + aside.note(run))
    aside.drop(run)
    made = read_made(run.folder, run.words)
    if made.state == "stale":  # a recipe was edited in the meantime
        return Event("finished", run.name, f"but the next study makes it again, as {made.why}{aside.note(run)}")
    return _ended("finished", run, made)


def _kept(run: Run) -> Event | None:
    """The event of a run that is finished; None if it is to be made."""
    back = aside.can_take_back(run)
    if back:
        aside.take_back(run)
    outcome = read_made(run.folder, run.words)
    if outcome.state != "finished":
        return None
    aside.drop(run)
    event = _ended("kept", run, outcome)
    return replace(event, text=f"taken back from {run.before}") if back and event.kind == "kept" else event


def _process(run: Run, command: Sequence[str], lock: BaseFileLock, bound: bool) -> str | None:
    """Runs the process, and returns the reason if it failed, else None."""
    log_file = run.folder / LOG_FILE
    with open(log_file, "wb") as log:
        try:
            child = start(command, run.words, log, _descriptors(lock), bound)
        except OSError as error:
            return f"{shlex.join(command)} cannot be started: {error}"
        try:
            status = _wait(child)
        except BaseException:
            _stop(child)
            raise
    if status < 0:
        what = f"ended by {signal.Signals(-status).name}"
    elif status > 0:
        what = f"exit status {status}"
    elif (metrics := read_object(run.folder / METRICS_FILE)) is None:
        what = f"no {METRICS_FILE}"
    elif metrics.get("state") != "tested":
        what = f"state {metrics.get('state')!r} in {METRICS_FILE}, not 'tested'"
    else:
        return None  # whatever the recipes are by now
    return f"{what}; {last_words(log_file)} (log: {log_file})"


def _wait(child: Child) -> int:
    while True:
        # Ray interrupts a task between two steps of Python only, which an endless wait has not.
        with suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=1)


def _stop(child: Child) -> None:
    """Asks a process to end. It is killed if it does not end in time, or if the user interrupts again."""
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


def _descriptors(lock: BaseFileLock) -> tuple[int, ...]:
    # filelock has no public name for the descriptor. On Windows, a process can't inherit it.
    descriptor = getattr(getattr(lock, "_context", None), "lock_file_fd", None)
    return (descriptor,) if os.name == "posix" and isinstance(descriptor, int) else ()


def _command_of(run: Run, command: Sequence[str]) -> dict[str, Any]:
    """What command.json says of a run: with what is in its recipes now, just before its process starts."""
    return {
        "words": list(run.words),
        "recipes": contents(run.words),
        "command": shlex.join([*command, *run.words]),
    }


def _write_command(run: Run, content: dict[str, Any]) -> None:
    with replacing(run.folder / COMMAND_FILE) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
