"""Two real processes over gloo: the steps of one process, also when they go on, and each question once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).parents[2] / "helpers" / "math_ddp.py"


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one_and_ask_each_question_once(tmp_path: Path, math_folders: Any) -> None:
    math_folders.tokenizer(tmp_path / "model")
    math_folders.metamath(tmp_path / "train")
    math_folders.gsm8k(tmp_path / "gsm8k")
    math_folders.math(tmp_path / "math")
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [str(WORKER), str(tmp_path), str(tmp_path)]
    # 72 rows: 18 steps an epoch of 4 on one rank, and of 2 on each of two. Step 22 is within the second epoch.
    for start, name, more in (
        (two, "two", []),
        (two, "again", [str(tmp_path / "two" / "step=22.ckpt")]),
        ([], "one", []),
    ):
        done = subprocess.run(
            [sys.executable, *start, *words, name, *more], capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def seen(run: str, rank: int) -> dict[str, list[Any]]:
        return json.loads((tmp_path / f"{run}-{rank}.json").read_text())

    one, ranks = seen("one", 0), [seen("two", rank) for rank in (0, 1)]
    assert len(one["train"]) == 36
    for whole, *parts in zip(one["train"], *(rank["train"] for rank in ranks), strict=True):
        assert sorted(whole) == sorted(row for part in parts for row in part)
    for rank in (0, 1):
        assert seen("again", rank)["train"] == ranks[rank]["train"][22:]
    every = sorted([["gsm8k", at] for at in range(13)] + [["math", at] for at in range(9)])
    for stage in ("test", "predict"):
        assert len(ranks[0][stage]) == len(ranks[1][stage])
        rows = [row for rank in ranks for batch in rank[stage] for row in batch]
        assert sorted(row[:2] for row in rows if not row[2]) == every
        assert sum(row[2] for row in rows) == (2 if stage == "test" else 0)  # 13 and 9 are odd, 22 is not
    asked = [row for rank in ranks for batch in rank["val"] for row in batch]
    assert sorted(idx for idx, repeated in asked if not repeated) == sorted(
        idx for batch in one["val"] for idx, _ in batch
    )
    assert sum(repeated for _, repeated in asked) == 2  # 5 of them, in each of two epochs
