"""From the bodies of a batch of requests to their answers; knows no HTTP and no server.

Invariant: every request gets an answer or a refusal of its own. What is wrong with one, its fields or its adapter, changes
nothing for the others in the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from gpart.errors import GPartError, GPartFileError
from gpart.serialization.about import About
from gpart.serving.names import check_stored_name
from gpart.serving.requests import BROKEN, NOT_FOUND, UNPROCESSABLE, RequestError
from gpart.serving.switch import Switch

logger = logging.getLogger(__name__)

Answer = dict[str, Any]


class Task(Protocol):
    """What a server does with the fields of a request beside ``adapter``."""

    def read(self, body: Mapping[str, Any]) -> Any:
        """The model's inputs; raises :class:`gpart.serving.requests.RequestError`."""

    def group(self, read: Any) -> Hashable:
        """What must be equal for two requests to run together."""

    def run(self, model: nn.Module, read: Sequence[Any], about: About | None) -> list[Answer]:
        """The answers, in order; ``about`` is what the adapter's file says of its task and labels."""


@dataclass(frozen=True)
class Asked:
    """A request that was read."""

    adapter: str | None
    inputs: Any


class Engine:
    """Answers batches of requests with one model.

    Args:
        switch: the model and its adapters.
        task: what is done with it.
        no_base: why the base itself answers nothing, if it does not.
    """

    def __init__(self, switch: Switch, task: Task, no_base: str = "") -> None:
        self.switch, self.task, self.no_base = switch, task, no_base

    def read(self, body: object) -> Asked | RequestError:
        """A request's body, read; what is wrong with it is given back, not raised."""
        try:
            return self._read(body)
        except RequestError as refused:
            return refused
        except GPartError as error:
            return RequestError(UNPROCESSABLE, str(error))
        except Exception:
            logger.exception("a request could not be read")
            return RequestError(BROKEN, "internal error while the request was read")

    def _read(self, body: object) -> Asked:
        if not isinstance(body, dict):
            raise RequestError(UNPROCESSABLE, f"the body must be a JSON object, got {type(body).__name__}")
        fields = dict(body)
        adapter = fields.pop("adapter", None)
        if adapter is None and self.no_base:
            raise RequestError(UNPROCESSABLE, self.no_base)
        return Asked(None if adapter is None else check_stored_name(adapter), self.task.read(fields))

    def answer(self, batch: Sequence[Asked | RequestError]) -> list[Answer | RequestError]:
        """The answers to a batch, in order; its requests are grouped by adapter, so that each is switched to once."""
        groups: dict[tuple[str | None, Hashable], list[int]] = {}
        answers: list[Answer | RequestError | None] = [None] * len(batch)
        for at, asked in enumerate(batch):
            if isinstance(asked, RequestError):
                answers[at] = asked
            else:
                groups.setdefault((asked.adapter, self.task.group(asked.inputs)), []).append(at)
        active = self.switch.active
        for (adapter, _), places in sorted(groups.items(), key=lambda group: group[0][0] != active):
            inputs = [asked.inputs for at in places if isinstance(asked := batch[at], Asked)]
            for at, made in zip(places, self._together(adapter, inputs), strict=True):
                answers[at] = made
        return [RequestError(BROKEN, "no answer was made") if made is None else made for made in answers]

    def _together(self, adapter: str | None, inputs: list[Any]) -> Sequence[Answer | RequestError]:
        """The answers to requests of one adapter; where that fails for all at a time, to each alone."""
        try:
            self.switch.use(adapter)
            with self.switch.running() as model:
                return self.task.run(model, inputs, self.switch.about)
        except GPartFileError as error:
            return [RequestError(NOT_FOUND, str(error))] * len(inputs)
        except GPartError as error:
            return [RequestError(BROKEN, str(error))] * len(inputs)
        except Exception:
            if len(inputs) > 1:
                return [made for each in inputs for made in self._together(adapter, [each])]
            logger.exception("a request of adapter %r could not be answered", adapter)
            return [RequestError(BROKEN, "internal error while the request was answered")]
