"""Who computes: chosen in one place, seen, switched, and never by the reference itself."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import gpart
from gpart import GPartError, Partition
from gpart.ops import cpu, dispatch, reference
from gpart.ops.block import Block, ComputedIndices
from gpart.ops.sums import GroupSums

CPU = torch.device("cpu")
SIZE = 1 << 17
needs_compiler = pytest.mark.skipif(not cpu.find_compiler()[0], reason="needs gcc, on Linux")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    for cached in (dispatch.allowed, dispatch.cpu_library, dispatch._triton_installed):
        cached.cache_clear()
    yield
    for cached in (dispatch.allowed, dispatch.cpu_library, dispatch._triton_installed):
        cached.cache_clear()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions of the C code that are called from now on."""
    called: list[str] = []
    for name in ("expand_stretch", "reduce_stretch", "group_indices"):
        real = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *given, name=name, real=real: (called.append(name), real(*given))[1])
    return called


def operate() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Expand, reduce and group indices of one large weight."""
    partition, weight = Partition(SIZE, 97), torch.arange(SIZE, dtype=torch.float32)
    blocks = (Block(ComputedIndices(partition, 0, SIZE, CPU), 0, 0, SIZE),)
    sums = GroupSums(97, CPU)
    sums.add(weight, blocks)
    out = dispatch.expand_into(torch.empty(SIZE), torch.arange(97.0), weight, blocks)
    return out, sums.total(torch.float64), dispatch.group_indices(partition, 0, SIZE, CPU)


@needs_compiler
@pytest.mark.parametrize(
    ("setting", "name", "used"),
    [
        (None, "cpu", True),
        ("auto", "cpu", True),
        ("cpu", "cpu", True),
        ("triton, cpu", "cpu", True),
        ("torch", "torch", False),
        ("triton", "torch", False),
        ("torch,triton", "torch", False),
    ],
)
def test_the_environment_says_what_may_compute(
    monkeypatch: pytest.MonkeyPatch, launched: list[str], setting: str | None, name: str, used: bool
) -> None:
    if setting is None:
        monkeypatch.delenv("GPART_BACKENDS", raising=False)
    else:
        monkeypatch.setenv("GPART_BACKENDS", setting)
    monkeypatch.setattr(dispatch, "_INTERPRETED", False)
    found = operate()
    assert bool(launched) is used
    assert gpart.backends()["cpu"].name == name
    monkeypatch.setattr(dispatch, "LEAST", 1 << 62)
    assert all(one.equal(other) for one, other in zip(found, operate(), strict=True))


@pytest.mark.parametrize("setting", ["gpu", "cpu,cuda", "TORCH"])
def test_an_unknown_backend_is_refused_with_what_there_is(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("GPART_BACKENDS", setting)
    with pytest.raises(GPartError, match=f"GPART_BACKENDS='{setting}': .* none of auto, torch, cpu, triton"):
        gpart.backends()


def test_backends_give_name_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_INTERPRETED", False)
    monkeypatch.setenv("GPART_BACKENDS", "torch")
    assert gpart.backends()["cpu"] == ("torch", "GPART_BACKENDS does not allow it")
    dispatch.allowed.cache_clear(), dispatch.cpu_library.cache_clear()
    monkeypatch.delenv("GPART_BACKENDS")
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    name, reason = gpart.backends()["cpu"]
    assert name == "torch"
    assert "no compiler 'no-such-compiler'" in reason
    assert "CC='no-such-compiler -O2'" in reason


@needs_compiler
def test_the_compiler_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``$CC`` with words of its own, as build systems write it."""
    gcc, log = shutil.which("gcc"), tmp_path / "called"
    assert gcc is not None
    wrapper = tmp_path / "my-compiler"
    wrapper.write_text(f'#!/bin/sh\necho "$1" >> {log}\nshift\nexec {gcc} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", f"{wrapper} first-word")
    name, reason = gpart.backends()["cpu"]
    assert name == "cpu"
    assert str(wrapper) in reason
    assert log.read_text().split() == ["first-word"]


@needs_compiler
def test_one_line_is_logged_where_a_backend_is_chosen_or_turned_down(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatch, "_INTERPRETED", False)
    for setting, said in (("cpu", "C computes expand and reduce"), ("torch", "GPART_BACKENDS does not allow it")):
        caplog.clear()
        dispatch.allowed.cache_clear(), dispatch.cpu_library.cache_clear()
        monkeypatch.setenv("GPART_BACKENDS", setting)
        with caplog.at_level(logging.INFO, "gpart.ops.dispatch"):
            operate(), operate()
        (record,) = caplog.records
        assert said in record.getMessage()
        assert record.name == "gpart.ops.dispatch"


@needs_compiler
def test_the_reference_calls_no_backend_however_small_it_may_be_used_for(
    monkeypatch: pytest.MonkeyPatch, launched: list[str]
) -> None:
    """It is what the backends are compared with; with LEAST lowered, the check of old called itself without end."""
    monkeypatch.setattr(dispatch, "LEAST", 1)
    monkeypatch.setattr(dispatch, "_SMALL", 0)
    partition = Partition(1000, 7)
    block = Block(partition.groups(), 0, 0, 1000)
    sums, out = torch.zeros(4, 7), torch.empty(1000)
    reference.expand_block(out, torch.arange(7.0), torch.zeros(1000), block)
    reference.reduce_block(sums, torch.ones(1000), block)
    assert out.equal(partition.groups().float())
    assert sums.sum(0).equal(partition.sizes().float())
    assert not launched
    library, reason = dispatch.cpu_library()  # the check runs on problems that are larger than LEAST now
    assert library is not None, reason
    launched.clear()
    assert dispatch.expand_into(torch.empty(1000), torch.arange(7.0), torch.zeros(1000), (block,)).equal(out)
    assert launched == ["expand_stretch"]


def test_the_reference_imports_no_backend() -> None:
    code = (
        "import sys, json; sys.modules['gpart'] = type(sys)('gpart'); sys.modules['gpart'].__path__ = [sys.argv[1]];"
        "import gpart.ops.reference; print(json.dumps(sorted(n for n in sys.modules if n.startswith('gpart.'))))"
    )
    folder = str(Path(gpart.__file__).parent)
    out = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == [
        "gpart.errors", "gpart.ops", "gpart.ops.block", "gpart.ops.reference", "gpart.ops.scratch", "gpart.partition",
    ]  # fmt: skip


def test_another_process_reads_the_setting_from_its_environment() -> None:
    code = "import gpart; print(*gpart.backends()['cpu'], sep='|')"
    environment = {**os.environ, "GPART_BACKENDS": "torch", "TRITON_INTERPRET": "0"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == "torch|GPART_BACKENDS does not allow it"
