"""Two real processes over gloo train as one process does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gpart import load_adapter

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict]]:
    out = tmp_path_factory.mktemp("ddp")
    two = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(WORKER),
        str(out),
        "2",
    ]
    one = [sys.executable, str(WORKER), str(out), "1"]
    for command in (two, one):
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return out, {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


def test_both_ranks_hold_what_one_process_has(runs: tuple[Path, dict[str, dict]]) -> None:
    found = runs[1]
    assert sorted(found) == ["1-0", "2-0", "2-1"]
    for key in ("theta", "head"):
        assert found["2-0"][key] == found["2-1"][key]
        together, single = torch.tensor(found["2-0"][key]), torch.tensor(found["1-0"][key])
        assert single.count_nonzero() == single.numel()
        assert (together - single).abs().max() < 1e-6


def test_only_theta_and_the_head_are_reduced_and_no_index_is_a_buffer(runs: tuple[Path, dict[str, dict]]) -> None:
    for rank in ("2-0", "2-1"):
        reduced = runs[1][rank]["reduced"]
        assert sum(reduced) == 5 * (10 + 16 * 2 + 2)
        assert runs[1][rank]["buffers"] == ["own"]


def test_its_checkpoint_loads_in_one_process(runs: tuple[Path, dict[str, dict]]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    newest = max(runs[0].glob("last*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert newest.name.startswith("last")
    for path in runs[0].glob("last*.ckpt"):
        adapter = load_adapter(net, path)
        assert torch.allclose(adapter.theta, torch.tensor(runs[1]["2-0"]["theta"]), atol=1e-6)
        adapter.detach()
