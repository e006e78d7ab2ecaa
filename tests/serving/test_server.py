"""The server as a process of its own, over loopback: 200 adapters, 50 clients, a hot reload, a broken adapter."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from served_models import TEXT, bert_adapters, bert_folder, fill, replace_adapter, spoil

import gpart
from gpart import attach
from gpart.adapter import GPartAdapter
from gpart.errors import GPartError
from gpart.serving.client import Client

COUNT, CLIENTS, EACH = 200, 50, 4
TEXTS = ["a charming film", "dull plot with no end", "great actors", "film"]
KEY = "a key"
ROOT = Path(gpart.__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    bert_folder(root / "base")
    bert_adapters(root / "base", root / "adapters", [f"u{number}" for number in range(COUNT)])
    shutil.copytree(root / "adapters" / "u7", root / "adapters" / "broken")
    spoil(root / "adapters" / "broken")
    return root


@pytest.fixture(scope="module")
def server(folders: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port()
    words = ["--base", str(folders / "base"), "--adapters", str(folders / "adapters"), "--port", str(port)]
    words += ["--max-batch-size", "16", "--accelerator", "cpu", "--max-image", "1"]
    with (folders / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpart.cli", "serve", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1", "LIT_SERVER_API_KEY": KEY, "PYTHONPATH": str(ROOT)},
            stdout=said,
            stderr=said,
            text=True,
            cwd=folders,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait(url, process, folders / "said")
        yield url, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait(url: str, process: subprocess.Popen[str], said: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            Client(url, api_key=KEY).adapters()
        except (OSError, GPartError):
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"no server: {said.read_text()}")


@pytest.fixture(scope="module")
def client(server: tuple[str, Any]) -> Client:
    return Client(server[0], timeout=60, api_key=KEY)


@cache
def adapted(base: Path) -> tuple[GPartAdapter, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(base).eval()
    return attach(model, TEXT), AutoTokenizer.from_pretrained(base)


@torch.no_grad()
def alone(folders: Path, number: int, text: str) -> dict[str, float]:
    """What the adapter of a number gives for one text, without a store, a switch or a batch."""
    adapter, tokenizer = adapted(folders / "base")
    fill(adapter, number)
    values = adapter.model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1).tolist()
    return {f"LABEL_{i}": value for i, value in enumerate(values)}


def check(folders: Path, answer: dict[str, Any], number: int, text: str) -> None:
    found = {each["label"]: each["score"] for each in answer["top"]}
    assert found == pytest.approx(alone(folders, number, text), abs=1e-6), (number, text)


def test_fifty_clients_at_a_time_get_each_its_adapters_answer(client: Client, folders: Path) -> None:
    asked = [((number * 7) % COUNT, TEXTS[number % len(TEXTS)]) for number in range(CLIENTS * EACH)]
    assert len({number for number, _ in asked}) == COUNT

    def one(start: int) -> list[dict[str, Any]]:
        mine = Client(client.url, api_key=KEY)
        return [mine.predict(text=text, adapter=f"u{number}") for number, text in asked[start::CLIENTS]]

    def bad(_: int) -> str:
        with pytest.raises(GPartError) as error:
            client.predict(text="film", adapter="broken")
        return str(error.value)

    with ThreadPoolExecutor(CLIENTS + 2) as pool:
        broken = [pool.submit(bad, number) for number in range(10)]
        answers = list(pool.map(one, range(CLIENTS)))
    for start, mine in enumerate(answers):
        for (number, text), answer in zip(asked[start::CLIENTS], mine, strict=True):
            check(folders, answer, number, text)
    for each in broken:
        assert "answers 500" in each.result()
        assert "adapter 'broken' is broken: adapter_model.safetensors was changed" in each.result()


def test_a_replaced_adapter_answers_at_once(client: Client, folders: Path) -> None:
    check(folders, client.predict(text="film", adapter="u3"), 3, "film")
    bert_adapters(folders / "base", folders / "new", [f"n{number}" for number in range(2)])
    adapter, _ = adapted(folders / "base")
    fill(adapter, 1234)
    adapter.save(folders / "new" / "n1")
    replace_adapter(folders / "adapters" / "u3", folders / "new" / "n1")
    check(folders, client.predict(text="film", adapter="u3"), 1234, "film")


def test_adapters_come_and_go_while_it_runs(client: Client, folders: Path) -> None:
    assert client.adapters() == sorted(["broken", *(f"u{number}" for number in range(COUNT))])
    shutil.copytree(folders / "adapters" / "u5", folders / "adapters" / "later")
    assert "later" in client.adapters()
    check(folders, client.predict(text="film", adapter="later"), 5, "film")
    shutil.rmtree(folders / "adapters" / "later")
    assert "later" not in client.adapters()
    with pytest.raises(GPartError, match=r"answers 404: .*there is no adapter 'later'"):
        client.predict(text="film", adapter="later")


def raw(url: str, path: str, content: bytes, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.request("POST", path, content, {"Content-Type": "application/json", "X-API-Key": KEY, **headers})
    response = connection.getresponse()
    found = response.status, response.read().decode()
    connection.close()
    return found


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"not json", 422),
        (b"[1]", 422),
        (b'"text"', 422),
        (b"null", 422),
        (b"\xff\xfe", 422),
        (b"[" * 100_000, 400),
        (b'{"text": "film", "adapter": "../../etc"}', 422),
        (b'{"text": "film", "adapter": "/etc/passwd"}', 422),
        (b'{"text": "film", "adapter": ["u1"]}', 422),
        (b'{"text": "film", "adapter": "nobody"}', 404),
        (b'{"txt": "film"}', 422),
        (b'{"text": "\\ud800"}', 422),
        (b'{"text": "' + b"f" * 2_500_000 + b'"}', 413),
        (b'{"text": "' + b"film " * 30 + b'"}', 422),
    ],
)
def test_what_is_wrong_has_a_status_and_a_reason(client: Client, content: bytes, status: int) -> None:
    found, said = raw(client.url, "/predict", content)
    assert found == status, said
    assert json.loads(said)["detail"]


def test_the_key_is_asked_for_everywhere(client: Client) -> None:
    for path in ("/predict", "/adapters", "/info", "/health"):
        stranger = Client(client.url, api_key="another")
        with pytest.raises(GPartError, match=r"answers 40[15]"):
            stranger._ask(path)
    assert raw(client.url, "/predict", b'{"text": "film"}', **{"X-API-Key": "another"})[0] == 401


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/adapters/u1", "/adapters/../base", "/static/x", "/shutdown"]
)
def test_no_other_path_answers(client: Client, path: str) -> None:
    with pytest.raises(GPartError, match="answers 404"):
        client._ask(path)


def test_the_base_answers_too_and_the_rest_still_does(client: Client, folders: Path) -> None:
    base, adapted_answer = client.predict(text="film"), client.predict(text="film", adapter="u9")
    assert base != adapted_answer
    check(folders, adapted_answer, 9, "film")


def test_sigterm_ends_every_process(server: tuple[str, subprocess.Popen[str]], folders: Path) -> None:
    """The last test of this file: the server is gone after it."""
    url, process = server
    family = {process.pid, *children(process.pid)}
    assert len(family) >= 4
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    end = time.monotonic() + 10
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in family):
        time.sleep(0.1)
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]
    with pytest.raises(OSError, match="refused"):
        urlopen(url, timeout=5)
    said = (folders / "said").read_text()
    assert "is loaded, http://127.0.0.1:" in said
    assert "Traceback" not in said
    assert not (folders / "client.py").exists()


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]
