"""What some releases that pyproject.toml allows cannot do."""

from __future__ import annotations

import pytest
import torch

TORCH = tuple(int(part) for part in torch.__version__.split("+", 1)[0].split(".")[:2])

needs_compiler = pytest.mark.skipif(
    TORCH < (2, 12), reason="before 2.12 torch's compiler stops at a second constant of one function"
)
"""For what goes through ``torch.compile`` or a strict export with several adapted layers (docs/limits.md)."""
