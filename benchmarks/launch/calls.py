"""How many calls inside the package one read of one adapted weight takes in a training step: ``python calls.py``.

Counted with ``sys.setprofile``: each Python function of the package that is entered between the moment when a layer asks
for its weight and the moment when it has it, in how many files these functions stand, and how often the next one stands
in another file than the one before. The model is a toy, so that launching is all there is; the step is the fourth, when
all that is built once is built. The same script runs on older versions, for a comparison:
``PYTHONPATH=/another/checkout python calls.py``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

import gpart
from gpart import GPartConfig, attach

PACKAGE = str(Path(gpart.__file__).parent)


class Counted(nn.Linear):
    """A layer that counts what reading its weight takes, once it is told to."""

    counting = False
    calls: list[str] = []  # noqa: RUF012  # one list for the one layer there is

    def forward(self, x: Tensor) -> Tensor:
        """Reads the weight, and the bias apart."""
        if not self.counting:
            return nn.functional.linear(x, self.weight, self.bias)
        weight = counted(lambda: self.weight, type(self).calls)
        return nn.functional.linear(x, weight, self.bias)


def counted(run: Callable[[], Tensor], calls: list[str]) -> Tensor:
    """What ``run`` returns; ``calls`` gets the file of each of the package's functions that it entered."""

    def note(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls.append(frame.f_code.co_filename[len(PACKAGE) + 1 :])

    sys.setprofile(note)
    try:
        return run()
    finally:
        sys.setprofile(None)


def count(weights: str) -> dict[str, int | str]:
    """Calls, files and moves of one read, with one of the settings of ``weights``."""
    torch.manual_seed(0)
    model = nn.Sequential(Counted(8, 8), nn.ReLU(), nn.Linear(8, 2))
    attach(model, GPartConfig(d=5, target_modules=["0"], modules_to_save=["2"]), weights=weights)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    layer = model[0]
    for step in range(4):
        if step == 3:
            Counted.calls.clear()
            layer.counting = True
        model(torch.ones(4, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    files = Counted.calls
    moves = sum(one != other for one, other in pairwise(files))
    return {"weights": weights, "calls": len(files), "files": len(set(files)), "moves": moves}


def main() -> None:
    """Prints one line for each setting."""
    for weights in ("auto", "kept", "forward", "recomputed"):
        print(json.dumps(count(weights)))


if __name__ == "__main__":
    main()
