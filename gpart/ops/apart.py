"""Computing constants while torch follows what this thread does.

Under a function transform, a dispatch mode or tracing, every operation is transformed or recorded, those on new tensors
too. Group indices and masks are no function of what is followed: they are constants.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def apart(make: Callable[[], T]) -> T:
    """What ``make`` returns or raises, as if torch followed nothing.

    Transforms, modes, tracing and inference mode belong to a thread, so that one of its own has none of them.

    Args:
        make: reads nothing that belongs to a thread.
    """

    def run() -> T:
        made = make()
        if isinstance(made, Tensor) and made.is_cuda:
            # Another thread has another stream, whose work nobody here would wait for.
            torch.cuda.current_stream(made.device).synchronize()
        return made

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(run).result()
