"""Damaged adapter folders and checkpoints never load wrongly and never crash: the benchmark's cases, fewer of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpart.serialization import folder

pytestmark = pytest.mark.slow  # not above a minute, but the default suite has ten, and damages files elsewhere too

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults" / "corruptions.py"


@pytest.fixture(scope="module")
def corruptions() -> Any:
    spec = importlib.util.spec_from_file_location("corruptions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["corruptions"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["corruptions"]


@pytest.fixture(scope="module")
def work(corruptions: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    corruptions.train(folder)
    return folder


def test_no_damaged_file_loads_wrongly(corruptions: Any, work: Path) -> None:
    cases = [(what, 10_000 + at) for what in corruptions.READERS for at in range(20)]
    rows = corruptions.run_all(work, cases)
    assert len(rows) == 40
    assert {row["kind"] for row in rows} == set(corruptions.KINDS)
    for row in rows:
        for reader in corruptions.READERS[row["what"]]:
            assert row[reader.__name__] in corruptions.RIGHT, row


class Agrees(str):
    """A checksum that agrees with any."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False


def test_a_file_that_loads_wrongly_would_be_seen(corruptions: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge is judged: without the checksums some damage gets through, and is called wrong."""
    monkeypatch.setattr(folder, "_content_hash", lambda _: Agrees())
    monkeypatch.setattr(folder, "hashlib", SimpleNamespace(sha256=lambda _: SimpleNamespace(hexdigest=Agrees)))
    found = {corruptions.case(work, "adapter", seed)["by_adapter"] for seed in range(10_000, 10_040)}
    assert "wrong" in found


def test_a_crash_is_an_outcome(corruptions: Any, work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The process that dies is noted, and the next case has a new one."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, sys\nfor line in sys.stdin:\n    what, seed = line.split()\n"
        '    os.kill(os.getpid(), 11) if seed == \'2\' else print(\'{"what": "adapter", "by_adapter": "refused"}\', flush=True)\n'
    )
    monkeypatch.setattr(corruptions, "__file__", str(script))
    rows = corruptions.run_all(work, [("adapter", 1), ("adapter", 2), ("adapter", 3)])
    assert [row["by_adapter"] for row in rows] == ["refused", "crash", "refused"]
    assert rows[1]["said"] == "exit status -11"
