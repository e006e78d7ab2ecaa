"""The Triton kernels: by the interpreter here, on a GPU where there is one, and left alone where there is no use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from gpart import Partition
from gpart.ops import dispatch
from gpart.ops.block import Block

ROOT = Path(__file__).resolve().parents[2]
WORKER = ["tests/helpers/triton_interpreted.py", "-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:doctest"]

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with torch's CUDA and ROCm builds")


def run(command: list[str], **environment: str) -> str:
    """Runs Python in a process of its own: Triton asks for its interpreter's variable when a kernel is defined."""
    known = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *command],
        env={**known, **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@needs_triton
@pytest.mark.timeout(600)  # it takes seconds of work, but the machine may be busy
def test_the_kernels_agree_with_the_reference_in_the_interpreter() -> None:
    out = run(["-m", "pytest", "-o", "addopts=", *WORKER, "--import-mode=importlib"], TRITON_INTERPRET="1")
    passed = re.search(r"(\d+) passed", out)
    assert passed, out
    assert int(passed[1]) >= 50
    assert not re.search(r"\d+ (skipped|deselected|xfailed)", out), out


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernels_agree_with_the_reference_on_a_gpu() -> None:
    assert " passed" in run(["-m", "pytest", "-o", "addopts=", *WORKER, "--import-mode=importlib"])


def test_importing_gpart_leaves_the_kernels_alone() -> None:
    code = "import sys, gpart; gpart.attach; print('gpart.ops.dispatch' in sys.modules, 'gpart.ops.triton_kernels' in sys.modules)"
    assert run(["-c", code], TRITON_INTERPRET="1").split() == ["True", "False"]


def test_a_cpu_needs_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_INTERPRETED", False)
    weight, part = torch.ones(10), Block(Partition(10, 3).groups(), 0, 0, 10)
    assert not dispatch.triton_available(weight.device)
    assert dispatch._triton_expands(torch.empty(10), torch.ones(3), weight, part) is None
    assert not dispatch.reduce_blocks(torch.zeros(1, 3, dtype=torch.float64), weight, (part,))
    assert dispatch.sum_rows(3, weight.device) == 1


@pytest.mark.parametrize("found", [True, False])
def test_kernels_are_for_cuda_where_triton_is(monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    monkeypatch.setattr(dispatch, "_INTERPRETED", False)
    monkeypatch.setattr(dispatch, "_triton_installed", lambda: found)
    available = {name: dispatch.triton_available(torch.device(name)) for name in ("cuda", "cpu", "mps", "meta")}
    assert available == {"cuda": found, "cpu": False, "mps": False, "meta": False}
    monkeypatch.setattr(dispatch, "_INTERPRETED", True)
    assert dispatch.triton_available(torch.device("cpu")) is found
