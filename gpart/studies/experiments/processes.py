"""Starts the process of a run: by a command, or on Linux forked where the libraries are imported already.

Invariant: a forked run is what ``python -m MODULE`` would be: its words, environment, standard streams and
``__main__`` are its own, and nothing but imported modules comes from the process that it is forked from.

Imports are 14 of the 22 s of CPU that a run of one step takes on SST-2. They are the libraries' own, and the same for
every run. So one process, the fork server of Python's ``multiprocessing``, imports them once; it runs nothing, and forks
the runs. Not where there is CUDA: torchao 0.18, which Transformers imports, starts it, and it does not survive a fork.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from multiprocessing import connection, forkserver, get_context, parent_process, reduction
from multiprocessing.process import BaseProcess
from typing import IO, Any, Protocol

COMMAND = (sys.executable, "-m", "gpart.cli")
_IMPORTED = "gpart.cli.imported"
"""The module that the fork server imports: all that a run of :data:`COMMAND` needs."""
_BOUND = "gpart.studies.experiments.bound"


class Child(Protocol):
    """A process that was started, with the methods of :class:`subprocess.Popen`."""

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end, and returns its exit status: the negative number of a signal that ended it.

        Raises:
            subprocess.TimeoutExpired: if it has not ended in ``timeout`` seconds.
        """

    def terminate(self) -> None:
        """Asks it to end."""

    def kill(self) -> None:
        """Ends it."""


def start(
    command: Sequence[str], words: Sequence[str], log: IO[bytes], descriptors: Sequence[int], bound: bool = False
) -> Child:
    """Starts a process in the current folder, without an input.

    Args:
        command: what the words are appended to. On Linux without CUDA, a module of this Python (``python -m MODULE``)
            is forked.
        words: its words.
        log: a file that its output and its errors are written to, line by line.
        descriptors: of open files that it holds open too.
        bound: whether it is killed if this process ends before it does. Only a module of this Python can be, and not
            on Windows.

    Raises:
        OSError: if it cannot be started.
    """
    # Unbuffered, so that its lines are in the log at once, even if it is killed.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # On macOS, system libraries do not survive a fork; Windows has none.
    module = command[-1] if tuple(command) == (*COMMAND[:2], command[-1]) else None
    if module is not None and sys.platform.startswith("linux") and not _has_cuda():
        streams = [_Descriptor(log.fileno()), *map(_Descriptor, descriptors)]
        return _Forked(module, list(words), environment, streams, bound)
    if module is not None and bound and sys.platform != "win32":
        return _bound(module, words, log, descriptors, environment)
    return _opened([*command, *words], log, descriptors, environment)


def _has_cuda() -> bool:
    import torch  # noqa: PLC0415  # for the one who asks for --help it would be a wait

    return torch.cuda.is_available()


def _bound(
    module: str, words: Sequence[str], log: IO[bytes], descriptors: Sequence[int], environment: dict[str, str]
) -> Child:
    pipe, own = os.pipe()
    try:
        child = _opened([*COMMAND[:2], _BOUND, str(pipe), module, *words], log, [*descriptors, pipe], environment)
    except OSError:
        os.close(own)
        raise
    finally:
        os.close(pipe)
    weakref.finalize(child, os.close, own)
    return child


def _opened(
    words: Sequence[str], log: IO[bytes], descriptors: Sequence[int], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        pass_fds=tuple(descriptors),
    )


class _Forked:
    def __init__(self, module: str, *arguments: Any) -> None:
        forkserver.set_forkserver_preload([_IMPORTED] if module == COMMAND[-1] else [])  # it has one server, the first
        # While the server imports, start waits. If it is interrupted then, the process is forked all the same later on,
        # and nobody knows of it: so it waits for a word, and ends where the pipe is closed without one.
        go, own = os.pipe()
        try:
            self._process: BaseProcess = get_context("forkserver").Process(
                target=_run, args=(module, *arguments, _Descriptor(go))
            )
            self._process.start()
            os.write(own, b"1")
        finally:
            os.close(go)
            os.close(own)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(COMMAND, timeout or 0)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


class _Descriptor:
    """A file's descriptor, which becomes the number of its duplicate where it is unpickled."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.number),)


def _received(duplicate: Any) -> int:
    return int(duplicate.detach())


def _run(
    module: str, words: list[str], environment: dict[str, str], descriptors: list[int], bound: bool, go: int
) -> None:
    """Does what ``python -m module`` does. The first descriptor is the log's; the others are left open."""
    if not os.read(go, 1):
        return
    os.close(go)
    if bound:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, own in enumerate((nothing, descriptors[0], descriptors[0])):
        os.dup2(own, stream)
    for text in (sys.stdout, sys.stderr):  # the objects stay, as loggers hold them since they were imported
        text.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]  # they are files
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *words]  # run_module puts the module's path in the first one's place
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        connection.wait([parent.sentinel])  # it is the process that called start, not the fork server
        os.kill(os.getpid(), signal.SIGKILL)
