"""Runs the processes of a study on Ray, each where the CPUs and GPUs that it asks for are free.

Invariant: a run is made by the same functions as without Ray, under the same lock, on the machine of a Ray worker. All
that the study's table needs comes back through Ray, so that the machines need no common file system.

Each run is one Ray task. If a worker is lost, with its machine or for want of memory, its run's process ends with it,
and Ray makes the run again, elsewhere if need be. A run that ends with an error is reported, and not repeated.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from gpart.errors import GPartError
from gpart.serialization.atomic import replacing
from gpart.studies.experiments import aside
from gpart.studies.experiments.cells import first_runs, following_runs
from gpart.studies.experiments.plan import COMMAND_FILE, LOG_FILE, METRICS_FILE, Cell, Run
from gpart.studies.experiments.processes import COMMAND
from gpart.studies.experiments.running import GRACE, Event, Tell, drop_before, run_once, settled

RETRIES = 3
"""How often a run is made again if its worker was lost."""
_PATIENCE = 10.0
"""The seconds that a run's lock is waited for: the process of a lost worker may still be ending."""
_BACK = (LOG_FILE, COMMAND_FILE, METRICS_FILE)
"""The files of a run that come back. The one that makes it finished is written last."""


@dataclass(frozen=True)
class RayRequest:
    """What is asked of Ray."""

    address: str | None = None
    """A cluster's address; ``auto``: the cluster of this machine; ``local``: one of the study's own, on this machine.
    None leaves it to Ray, which takes ``$RAY_ADDRESS``, else the cluster of this machine, else one of its own."""
    cpus: float = 1
    """The number of CPUs of each run. Ray sets ``OMP_NUM_THREADS`` to it, unless it is set."""
    gpus: float = 0
    """The number of GPUs of each run, such as 0.5 for two runs on one. Ray sets ``CUDA_VISIBLE_DEVICES``."""


def run_cells_on_ray(cells: Sequence[Cell], tell: Tell, request: RayRequest, command: Sequence[str] = COMMAND) -> None:
    """Makes all runs that are not finished, as :func:`gpart.studies.experiments.cells.run_cells` does, on Ray.

    The runs that wait for no choice are handed to Ray at once; the others follow when their cell's choice is made. If
    this is interrupted, the processes of the runs are ended, on all machines.

    Args:
        cells: the cells of the study, or of a shard.
        tell: a function that is called with every event but ``started``.
        request: the cluster, and what each run takes of it.
        command: the command that a run's words are appended to. A worker puts its own Python in the first one's place.

    Raises:
        GPartError: if Ray is not installed or cannot be reached, or the cluster is smaller than one run.
    """
    with _connected(request) as ray:
        make = ray.remote(num_cpus=request.cpus, num_gpus=request.gpus, max_retries=RETRIES)(_make)
        pending: dict[Any, tuple[int, Run]] = {}
        deciding = dict.fromkeys(range(len(cells)), 0)

        def submit(at: int, runs: Sequence[Run]) -> int:
            due = [run for run in runs if not settled(run, tell)]
            pending.update({make.remote(run, tuple(command[1:]), os.getcwd()): (at, run) for run in due})
            return len(due)

        try:
            for at, cell in enumerate(cells):
                deciding[at] = submit(at, first_runs(cell))
                if not deciding[at]:
                    submit(at, following_runs(cell, tell))
            while pending:
                (done,), _ = ray.wait(list(pending), num_returns=1)
                at, run = pending.pop(done)
                tell(_received(ray, done, run))
                deciding[at] -= 1
                if deciding[at] == 0:
                    submit(at, following_runs(cells[at], tell))
        except BaseException:
            _cancel(ray, list(pending))
            raise


@contextmanager
def _connected(request: RayRequest) -> Iterator[Any]:
    """Ray, connected to the cluster, and the process as it was afterwards."""
    try:
        ray: Any = import_module("ray")  # an extra, which is not needed without --ray
    except ImportError as error:
        raise GPartError("--ray needs the package ray: pip install 'gpart-lightning[ray]'") from error
    stopped = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=request.address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise GPartError(f"--ray: no Ray at {request.address or 'the default address'}: {error}") from error
    try:
        with suppress(ValueError):  # not in the main thread, where Ray leaves the signal alone too
            signal.signal(signal.SIGTERM, stopped)  # Ray has replaced it
        there = ray.cluster_resources()
        for what, asked in (("CPU", request.cpus), ("GPU", request.gpus)):
            if asked > there.get(what, 0):
                raise GPartError(f"each run asks for {asked:g} {what}s, and Ray has {there.get(what, 0):g} in all")
        yield ray
    finally:
        ray.shutdown()


def _make(run: Run, rest: tuple[str, ...], folder: str) -> tuple[Event, dict[str, bytes]]:
    """Makes a run in a Ray worker; returns its last event and its small files."""
    if Path(folder).is_dir():  # else there is no common file system, and it is made where Ray has put the worker
        os.chdir(folder)
    event = run_once(run, lambda _: None, (sys.executable, *rest), _PATIENCE, bound=True)
    files = [run.folder / name for name in _BACK]
    return event, {file.name: file.read_bytes() for file in files if file.is_file()}


def _received(ray: Any, done: Any, run: Run) -> Event:
    try:
        event, files = cast("tuple[Event, dict[str, bytes]]", ray.get(done))
    except ray.exceptions.RayError as error:
        return Event("failed", run.name, f"Ray lost it: {str(error).strip().splitlines()[-1]}")
    for name, content in files.items():
        file: Path = run.folder / name
        if not file.is_file() or file.read_bytes() != content:  # else it was made in this very folder
            with replacing(file) as part:
                part.write(content)
    drop_before(run)
    # A worker without this file system does not know what is kept here.
    kept = aside.note(run) if event.kind == "failed" else ""
    return replace(event, text=event.text.removesuffix(kept) + kept)


def _cancel(ray: Any, pending: list[Any]) -> None:
    """Ends the processes of all runs, and waits until they have ended."""
    for one in pending:
        ray.cancel(one)
    if pending:
        ray.wait(pending, num_returns=len(pending), timeout=GRACE)
