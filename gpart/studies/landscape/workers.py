"""Runs jobs in this process or in several, and hands each result over as soon as it is there.

Invariant: no process is left behind, whether the jobs end, one fails, this process is interrupted or it is killed. This
module imports little, since a worker imports it before it has turned off what its libraries say when they are imported.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, TypeVar

import torch

from gpart.errors import GPartError

J = TypeVar("J")


def results(jobs: Sequence[J], run: Callable[[J], Any], workers: int) -> Iterator[tuple[J, Any]]:
    """Each job with its result, in the order in which they are done.

    Args:
        jobs: what to run; with several workers they can be pickled.
        run: does one job; can be pickled too.
        workers: processes; with one, it is this process. They share this process's threads.

    Raises:
        GPartError: if a worker died.

    Example:
        >>> list(results([1, -2], abs, workers=1))
        [(1, 1), (-2, 2)]
    """
    if workers == 1 or len(jobs) < 2:
        yield from ((job, run(job)) for job in jobs)
        return
    threads = max(1, torch.get_num_threads() // workers)
    # Fresh interpreters: forked ones would hang in the thread pools that torch has started here.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(threads,))
    try:
        futures = {pool.submit(run, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise GPartError(
            f"one of {workers} worker processes died: its error is printed above; where there is none it was killed, perhaps "
            "for memory: take fewer"
        ) from None
    except BaseException:
        for process in list((pool._processes or {}).values()):  # else what they are at would be waited for
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears of it too, and ends its workers
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao, when Transformers imports it
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            with suppress(OSError):
                parent.join()
            os._exit(1)  # the parent was killed, and nobody wants what is computed here

    threading.Thread(target=end_with_parent, daemon=True).start()
