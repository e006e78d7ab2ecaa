"""LitServe's hooks and loop, without a server."""

from __future__ import annotations

import json
import pickle
import queue
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from litserve.loops.base import _SENTINEL_VALUE, _StopLoopError
from served_models import bert_adapters, bert_folder

from gpart.errors import GPartError
from gpart.serving.api import AdapterAPI, Settings, WaitingLoop
from gpart.serving.requests import RequestError


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> AdapterAPI:
    root = tmp_path_factory.mktemp("api")
    bert_folder(root / "base")
    bert_adapters(root / "base", root / "adapters", ["u0", "u1"])
    made = AdapterAPI(Settings(str(root / "base"), str(root / "adapters")), max_batch_size=4)
    made.pre_setup()
    made = pickle.loads(pickle.dumps(made))  # as LitServe sends it to the process that runs the model
    made.setup("cpu")
    return made


def asked(api: AdapterAPI, *bodies: dict[str, Any]) -> list[tuple[int, Any]]:
    """Status and content of each request's answer, by the hooks in LitServe's order."""
    batch = api.batch([api.decode_request(body) for body in bodies])
    responses = [api.encode_response(output) for output in api.unbatch(api.predict(batch))]
    responses = pickle.loads(pickle.dumps(responses))  # between processes
    return [(response.status_code, json.loads(response.body)) for response in responses]


def test_the_hooks_give_each_request_its_own_status(api: AdapterAPI) -> None:
    found = asked(
        api,
        {"text": "film", "adapter": "u0"},
        {"text": "film", "adapter": "none"},
        {"text": 1},
        {"text": "film", "adapter": "u1"},
    )
    assert [status for status, _ in found] == [200, 404, 422, 200]
    assert found[1][1] == {"detail": "there is no adapter 'none'"}
    assert found[0][1] != found[3][1]


def test_an_answer_that_is_not_finite_is_that_requests_error(api: AdapterAPI) -> None:
    response = api.encode_response({"label": "a", "score": float("nan")})
    assert (response.status_code, json.loads(response.body)["detail"]) == (500, "the model's answer is not finite")


def test_a_refusal_has_its_status(api: AdapterAPI) -> None:
    assert api.encode_response(RequestError(422, "why")).status_code == 422


def test_the_reason_of_a_failed_start_is_sent(tmp_path: Path) -> None:
    class End:
        sent: list[str] = []  # noqa: RUF012

        def send(self, reason: str) -> None:
            self.sent.append(reason)

    api = AdapterAPI(Settings(str(tmp_path), str(tmp_path)), End())
    import signal

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(GPartError, match="is no model that Transformers can read"):
            api.setup("cpu")
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(End.sent) == 1
    assert "is no model" in End.sent[0]


class Waiting:
    """What the loop asks of an API."""

    max_batch_size, batch_timeout, request_timeout = 3, 0.2, 30.0


def item(number: int, age: float = 0.0) -> tuple[int, str, float, dict[str, int]]:
    return 0, f"u{number}", time.monotonic() - age, {"n": number}


def test_the_loop_takes_what_is_there_up_to_a_batch() -> None:
    waiting: queue.Queue[Any] = queue.Queue()
    for number in range(5):
        waiting.put(item(number))
    loop = WaitingLoop()
    start = time.monotonic()
    assert loop.get_batch_requests(Waiting, waiting, None) == ([(0, f"u{n}", {"n": n}) for n in range(3)], [])
    assert time.monotonic() - start < Waiting.batch_timeout  # a full batch waits for nothing
    assert loop.get_batch_requests(Waiting, waiting, None)[0] == [(0, f"u{n}", {"n": n}) for n in (3, 4)]


def test_the_loop_waits_for_others_only_after_the_first() -> None:
    waiting: queue.Queue[Any] = queue.Queue()
    threading.Timer(0.3, waiting.put, [item(1)]).start()
    threading.Timer(0.4, waiting.put, [item(2)]).start()
    threading.Timer(0.9, waiting.put, [item(3)]).start()
    taken, _ = WaitingLoop().get_batch_requests(Waiting, waiting, None)
    assert [uid for _, uid, _ in taken] == ["u1", "u2"]


def test_the_loop_sorts_out_what_has_waited_too_long() -> None:
    waiting: queue.Queue[Any] = queue.Queue()
    waiting.put(item(0, age=31))
    waiting.put(item(1))
    assert WaitingLoop().get_batch_requests(Waiting, waiting, None) == ([(0, "u1", {"n": 1})], [(0, "u0")])


def test_the_loop_ends_when_it_is_told_and_when_the_server_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: queue.Queue[Any] = queue.Queue()
    waiting.put(_SENTINEL_VALUE)
    loop = WaitingLoop()
    with pytest.raises(_StopLoopError):
        loop.get_batch_requests(Waiting, waiting, None)
    monkeypatch.setattr("gpart.serving.api._IDLE", 0.01)
    assert loop.get_batch_requests(Waiting, waiting, None) == ([], [])
    loop.server = -1
    with pytest.raises(_StopLoopError):
        loop.get_batch_requests(Waiting, waiting, None)
