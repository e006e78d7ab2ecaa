"""What one read of one weight costs in calls, by the script that counts them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "launch" / "calls.py"


@pytest.mark.parametrize(("weights", "files"), [("auto", 7), ("kept", 7), ("forward", 7), ("recomputed", 9)])
def test_one_read_stays_within_its_calls_and_files(weights: str, files: int) -> None:
    spec = importlib.util.spec_from_file_location("calls", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.count(weights)
    assert 10 <= found["calls"] <= 40
    assert found["files"] <= files
