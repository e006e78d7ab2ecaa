"""Both passes over RoBERTa-base's adapted weights, by torch's operations and in C, in turns, as JSON.

Group numbers are stored in two bytes, in four, or computed; all six ways give the same bits, which is checked first.

python benchmarks/speed/passes.py > benchmarks/speed/passes.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

import torch
from torch import Tensor

from gpart.ops.block import Block, ComputedIndices, Entries
from gpart.ops.sums import GroupSums
from gpart.partition import Partition

WEIGHTS, WIDTH, D = 24, 768, 23_040


def main() -> None:
    """Times them and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    size, cpu = WIDTH * WIDTH, torch.device("cpu")
    partition = Partition(WEIGHTS * size, D)
    base, grads = (torch.randn(WEIGHTS, size) for _ in range(2))
    out, scaled = torch.empty_like(base), torch.randn(D)

    def expand(groups: list[Entries]) -> Tensor:
        for number, numbers in enumerate(groups):
            add_chunks(out[number], scaled, base[number], Block(numbers, 0, 0, size))
        return out

    def reduce(groups: list[Entries]) -> Tensor:
        sums = GroupSums(D, cpu)
        for number, numbers in enumerate(groups):
            sums.add_block(grads[number], Block(numbers, 0, 0, size))
        return sums.total(torch.float32)

    sources: dict[str, list[Entries]] = {
        f"{8 * dtype.itemsize} bits": [partition.groups(i * size, (i + 1) * size, cpu, dtype) for i in range(WEIGHTS)]
        for dtype in (torch.int16, torch.int32)
    }
    sources["computed"] = [ComputedIndices(partition, i * size, size, cpu) for i in range(WEIGHTS)]
    if native._ready() is None:
        raise SystemExit("native.c is not used here: there is nothing to compare")
    least = {"C": native._LEAST, "torch": 1 << 62}  # the smallest stretch that C is used for
    passes: dict[str, Callable[[list[Entries]], Tensor]] = {"expand": expand, "reduce": reduce}
    ways = [(name, by, source) for name in passes for by in least for source in sources]

    def run(name: str, by: str, source: str) -> Tensor:
        native._LEAST = least[by]
        return passes[name](sources[source])

    for name in passes:
        first, *others = (run(*way).clone() for way in ways if way[0] == name)
        if not all(torch.equal(first, other) for other in others):
            raise SystemExit(f"{name}: not all ways give the same numbers")
    samples: dict[str, list[float]] = {", ".join(way): [] for way in ways}
    for _ in range(given.rounds):
        for way in ways:
            start = time.perf_counter()
            run(*way)
            samples[", ".join(way)].append(1e3 * (time.perf_counter() - start))
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "threads": given.threads,
        "median ms": {name: round(statistics.median(values), 2) for name, values in samples.items()},
        "minimum ms": {name: round(min(values), 2) for name, values in samples.items()},
        "samples ms": {name: [round(value, 2) for value in values] for name, values in samples.items()},
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
