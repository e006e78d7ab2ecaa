"""The engine as a LitServe API, and the loop that feeds it.

Invariant: no hook raises for one request's sake, since LitServe answers a whole batch with what one of its requests raised:
what is wrong with a request travels as a value, and becomes that request's own status in :meth:`AdapterAPI.encode_response`.
"""
# No ``from __future__ import annotations`` here: LitServe takes these annotations as they are for FastAPI's types.
# And no torch at the top: the process that starts the server and the one that listens need none.

import logging
import os
import signal
import time
from dataclasses import dataclass, field
from queue import Empty
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse
from litserve import LitAPI
from litserve.loops.base import _StopLoopError
from litserve.loops.simple_loops import BatchedLoop

from gpart.errors import GPartError
from gpart.serving.requests import BROKEN, Limits, RequestError

if TYPE_CHECKING:
    from gpart.serving.engine import Answer, Asked, Engine

_IDLE = 1.0  # s between two looks whether the server is still there


@dataclass(frozen=True)
class Settings:
    """What is served; plain values, since LitServe starts a process for the model."""

    base: str
    adapters: str
    task: str = "auto"
    dtype: str = "auto"
    memory: int = 1 << 30
    num_labels: int | None = None
    limits: Limits = field(default_factory=Limits)
    started: str = ""
    """Printed when the model is loaded."""


def make_engine(settings: Settings, device: str = "cpu") -> "Engine":
    """The engine that the settings describe.

    Raises:
        GPartError: if there is no such model or folder, or they do not fit each other.
    """
    # ruff: disable[PLC0415]
    from gpart.serving.engine import Engine
    from gpart.serving.models import labels_in, load_model, make_task, read_config, task_of, untrained
    from gpart.serving.store import AdapterStore
    from gpart.serving.switch import Switch
    # ruff: enable[PLC0415]

    store = AdapterStore(settings.adapters, settings.memory)
    config = read_config(settings.base)
    task = task_of(config, settings.task)
    if (labels := settings.num_labels or labels_in(store, config, task)) is not None:
        config.num_labels = labels
    model = load_model(settings.base, task, config, settings.dtype, device)
    return Engine(Switch(model, store), make_task(settings.base, task, config, settings.limits), untrained(model))


class AdapterAPI(LitAPI):  # type: ignore[misc]  # LitServe has no types
    """One base model, many adapters; LitServe's hooks.

    Args:
        settings: what is served.
        failures: the end of a pipe that takes the reason where the model cannot be loaded.
        max_batch_size: requests that run together.
        batch_timeout: seconds to wait for more of them.
    """

    def __init__(
        self, settings: Settings, failures: Any = None, max_batch_size: int = 8, batch_timeout: float = 0.01
    ) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout, loop=WaitingLoop())
        self.settings, self.failures = settings, failures

    def setup(self, device: str) -> None:
        """Loads the model; called once, in the process that runs it."""
        if self.failures is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process
            _silence()
        try:
            self.engine = make_engine(self.settings, device)
        except GPartError as error:
            if self.failures is not None:
                self.failures.send(str(error))
                logging.getLogger("litserve").disabled = True  # the message is told in one line, by who waits for it
                logging.getLogger("litserve.loops.loops").disabled = True
            raise
        if self.settings.started:
            print(self.settings.started, flush=True)  # noqa: T201  # the command's own line

    def decode_request(self, request: dict[str, Any]) -> "Asked | RequestError":
        """A request's body, read; FastAPI has refused what is no JSON object."""
        return self.engine.read(request)

    def predict(self, batch: "list[Asked | RequestError]") -> "list[Answer | RequestError]":
        """The answers to a batch, in order."""
        return self.engine.answer(batch)

    def encode_response(self, output: "Answer | RequestError") -> JSONResponse:
        """One answer, or the status and the reason of one refusal."""
        if isinstance(output, RequestError):
            return JSONResponse({"detail": output.detail}, output.status)
        try:
            return JSONResponse(output)
        except ValueError:  # JSON has no NaN
            return JSONResponse({"detail": "the model's answer is not finite"}, BROKEN)


def _silence() -> None:
    """Leaves out what Transformers says of every load, and a torchao warning when it is first imported.

    A missing head is no news here: the adapters bring theirs, and the base refuses to answer without.
    """
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415  # after the line above

    its: Any = transformers_logging
    its.set_verbosity_error()
    its.disable_progress_bar()


class WaitingLoop(BatchedLoop):  # type: ignore[misc]  # LitServe has no types
    """Sleeps until a request comes, then collects others for ``batch_timeout``.

    LitServe's own asks its queue without pause, or a thousand times a second, which keeps an idle server busy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.server = os.getpid()  # made there, and sent to the process that runs the model

    def get_batch_requests(self, lit_api: Any, request_queue: Any, transport: Any) -> tuple[list[Any], list[Any]]:
        """The requests of the next batch, and those that have waited too long."""
        taken: list[Any] = []
        late: list[Any] = []
        end = None
        while len(taken) < lit_api.max_batch_size:
            wait = _IDLE if end is None else end - time.monotonic()
            if wait <= 0:
                break
            try:
                queue_id, uid, since, body = request_queue.get(timeout=wait)
            except Empty:
                break
            except (EOFError, ConnectionError) as error:
                raise _StopLoopError("the server is gone") from error
            if uid is None:
                raise _StopLoopError
            end = time.monotonic() + lit_api.batch_timeout if end is None else end
            if lit_api.request_timeout not in (-1, False) and time.monotonic() - since > lit_api.request_timeout:
                late.append((queue_id, uid))
            else:
                taken.append((queue_id, uid, body))
        if end is None and self.server not in (os.getpid(), os.getppid()):  # it was killed
            raise _StopLoopError("the server is gone")
        return taken, late
