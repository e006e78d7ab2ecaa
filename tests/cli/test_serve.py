"""``gpart serve``: what it says before it serves."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import gpart
from gpart.cli import main
from gpart.cli import serve as module
from gpart.errors import GPartError

ROOT = Path(gpart.__file__).resolve().parent.parent


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "all").mkdir()
    config = {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "hidden_size": 12,
        "vocab_size": 9,
    }
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    return tmp_path / "base"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["serve", *words]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("gpart: error: ")
    return shown.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "the following arguments are required: --base, --adapters"),
        (["--base", "b", "--adapters", "a", "--port", "x"], "argument --port: invalid int value: 'x'"),
        (["--base", "b", "--adapters", "a", "--max-batch-size", "0"], "must be 1 or more, got 0"),
        (["--base", "b", "--adapters", "a", "--max-tokens", "many"], "invalid whole number value: 'many'"),
        (["--base", "b", "--adapters", "a", "--batch-timeout", "-1"], "must be above 0, got -1"),
        (["--base", "b", "--adapters", "a", "--task", "chat"], "invalid choice: 'chat'"),
        (["--base", "b", "--adapters", "a", "--host", "example.org"], "invalid choice: 'example.org'"),
        (["--base", "b", "--adapters", "a", "--port", "80"], "port must be from 1024 to 65535, or 0 for any, got 80"),
        (["--base", "b", "--adapters", "/none/there", "--port", "0"], "there is no folder /none/there"),
    ],
)
def test_a_mistake_is_told_in_one_line(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reason in said(capsys, *words)


def test_a_port_that_is_taken(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        words = ["--base", str(base), "--adapters", str(base.parent / "all"), "--port", str(port)]
        assert f"port {port} of 127.0.0.1 cannot be used: Address already in use" in said(capsys, *words)


@pytest.mark.slow  # starts a process that imports Transformers, only to fail
def test_a_model_that_cannot_be_loaded_is_told_in_one_line_and_leaves_nothing_behind(base: Path) -> None:
    words = ["--base", str(base), "--adapters", str(base.parent / "all"), "--port", "0", "--accelerator", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "gpart.cli", "serve", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=200,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"gpart: error: {base} cannot be loaded for text-classification: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""  # and the pipes are closed: no process holds them any more


def test_without_litserve_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert "pip install 'gpart-lightning[serve]'" in said(capsys, "--base", "b", "--adapters", "a")


def test_help_and_mistakes_need_no_torch() -> None:
    code = (
        "import sys; from gpart.cli.serve import serve_command\n"
        "try: serve_command(['--help'])\nexcept SystemExit: pass\n"
        "print(*[name for name in ('torch', 'litserve', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: gpart serve" in done.stdout
    assert done.stdout.splitlines()[-1] == ""
    for task in module.TASKS:
        assert task in done.stdout


def test_the_tasks_are_the_servers() -> None:
    from gpart.serving.models import CLASSES

    assert ("auto", *CLASSES) == module.TASKS


def test_the_client_needs_no_torch_and_an_address() -> None:
    code = "import sys; from gpart.serving import Client; Client('http://x'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    from gpart.serving import Client

    with pytest.raises(GPartError, match="begins with http:// or https://, got 'file:///etc/passwd'"):
        Client("file:///etc/passwd")
