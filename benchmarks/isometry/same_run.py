"""How far a run of the non-isometric map is from one of GPart, at each snapshot, as a part of the latter's update.

    python benchmarks/isometry/same_run.py GPART_RUN NON_ISOMETRIC_RUN --size 1769472

W - W0 is P·theta: theta_j / sqrt(n_j) in group j for GPart, and theta_j itself for the other. So ‖W - W'‖² is the sum over
the groups of n_j (theta_j / sqrt(n_j) - theta'_j)², in float64, and no weight is needed for it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from gpart.partition import Partition
from gpart.serialization.checkpoint_file import load_checkpoint_file


def theta_of(snapshot: Path) -> torch.Tensor:
    """The one theta that a snapshot holds, in float64."""
    state = load_checkpoint_file(str(snapshot))["state_dict"]
    (theta,) = [value for name, value in state.items() if name.endswith(".theta")]
    return theta.double()


def main() -> None:
    """Prints a line for each snapshot but the start's, where both updates are 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, help="folders with snapshots/, GPart's first")
    parser.add_argument("--size", type=int, required=True, help="D, the number of adapted weights")
    given = parser.parse_args()
    mine, other = given.runs
    for snapshot in sorted((mine / "snapshots").glob("*.ckpt"))[1:]:
        theta, its = theta_of(snapshot), theta_of(other / "snapshots" / snapshot.name)
        sizes = Partition(size=given.size, d=len(theta), seed=0).sizes().double()
        apart = (sizes * (theta / sizes.sqrt() - its) ** 2).sum().sqrt()
        print(f"{snapshot.stem}: {float(apart / theta.norm()):.4%}")


if __name__ == "__main__":
    main()
