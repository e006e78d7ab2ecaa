"""Two real processes over gloo see the pictures that one process sees, also when they go on within an epoch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).parents[2] / "helpers" / "images_ddp.py"


@pytest.mark.slow
def test_two_ranks_share_the_pictures_of_one_and_go_on_within_an_epoch(
    tmp_path: Path, image_folders: Any, tiny_processor: Path
) -> None:
    image_folders.imagefolder(tmp_path / "own")
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [str(WORKER), str(tmp_path), str(tmp_path / "own"), str(tiny_processor)]
    # 12 of the 16 pictures train, 4 a step: 3 steps an epoch on one rank, 2 on each of two, of 4 and of 2 pictures.
    # Step 3 is within the second epoch.
    for start, name, more in (
        (two, "two", []),
        (two, "again", [str(tmp_path / "two" / "step=3.ckpt")]),
        ([], "one", []),
    ):
        done = subprocess.run(
            [sys.executable, *start, *words, name, *more], capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def seen(run: str, rank: int) -> list[tuple[int, int, str]]:
        return list(map(tuple, json.loads((tmp_path / f"{run}-{rank}.json").read_text())))

    single = seen("one", 0)
    ranks = [seen("two", rank) for rank in (0, 1)]
    assert len(set(single)) == len(single) == 24
    for epoch in (0, 1):
        shares = [[one for one in rank if one[0] == epoch] for rank in ranks]
        order = [one for one in single if one[0] == epoch]
        assert [one for pair in zip(*shares, strict=True) for one in pair] == order
    for rank in (0, 1):
        assert seen("again", rank) == ranks[rank][6 + 4 :]
