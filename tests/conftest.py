"""Shared by all tests: two threads, a fixed seed, no hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked loaders warn otherwise

import numpy as np
import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _reference_groups(size: int, d: int, seed: int) -> np.ndarray:
    """The scheme gpart-v1 from its formulas in unsigned 64-bit numpy, sharing no line with gpart."""
    z, x = [], seed
    for _ in range(12):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        y = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) % 2**64
        y = ((y ^ y >> 27) * 0x94D049BB133111EB) % 2**64
        z.append(np.uint64(y ^ y >> 31))
    k = max(8, (size - 1).bit_length())
    mask = np.uint64(2**k - 1)

    def mix(x: np.ndarray) -> np.ndarray:
        for r in range(6):
            x = (x * (z[2 * r] | np.uint64(1)) + z[2 * r + 1]) & mask
            x = x ^ (x >> np.uint64(k // 3 if r % 2 else k // 2))
        return x

    x = mix(np.arange(size, dtype=np.uint64))
    while (outside := x >= size).any():
        x[outside] = mix(x[outside])
    return (x % np.uint64(d)).astype(np.int64)


class DenseReference:
    """The method by its formulas in float64 and numpy: P·theta and Pᵀ·g over the whole flat vector of length D.

    ``entries`` is the flat vector's order as the test states it: (parameter name, index into the parameter) pairs,
    each block joined row-major.
    """

    def __init__(self, size: int, d: int, seed: int = 0, isometric: bool = True) -> None:
        self.d, self.groups = d, _reference_groups(size, d, seed)
        counts = np.bincount(self.groups, minlength=d)
        self.factor = 1 / np.sqrt(counts) if isometric else np.ones(d)

    def expand(self, theta: torch.Tensor) -> np.ndarray:
        return (theta.detach().double().numpy() * self.factor)[self.groups]

    def reduce(self, vector: np.ndarray) -> np.ndarray:
        return np.bincount(self.groups, weights=vector, minlength=self.d) * self.factor

    def reduce_named(self, tensors: dict[str, torch.Tensor], entries: list[tuple[str, Any]]) -> torch.Tensor:
        """Pᵀ·g, with g read from dense gradients by name."""
        flat = [tensors[name].detach().double().numpy()[index].ravel() for name, index in entries]
        vector = np.concatenate(flat)
        assert vector.size == self.groups.size, "the test's entries are not D numbers"
        return torch.from_numpy(self.reduce(vector))

    def expand_named(
        self, theta: torch.Tensor, shapes: dict[str, tuple[int, ...]], entries: list[tuple[str, Any]]
    ) -> dict[str, torch.Tensor]:
        """P·theta by parameter name, zero outside the entries."""
        vector = self.expand(theta)
        out = {name: np.zeros(shapes[name]) for name, _ in entries}
        at = 0
        for name, index in entries:
            block = out[name][index]
            out[name][index] = vector[at : at + block.size].reshape(block.shape)
            at += block.size
        assert at == vector.size, "the test's entries are not D numbers"
        return {name: torch.from_numpy(value) for name, value in out.items()}


@pytest.fixture(scope="session")
def reference() -> type[DenseReference]:
    """The independent reference implementation, as a class."""
    return DenseReference


@pytest.fixture(scope="session")
def reference_groups() -> Callable[[int, int, int], np.ndarray]:
    """All groups of a partition, computed independently of gpart."""
    return _reference_groups


@pytest.fixture(scope="session")
def same_bits() -> Callable[[torch.Tensor, torch.Tensor], bool]:
    """Whether two tensors agree in dtype, shape and every bit (-0.0 is not 0.0, NaN is itself)."""

    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        raw = [x.detach().reshape(-1).contiguous().view(torch.uint8) for x in (a, b)]
        return torch.equal(*raw)

    return same


@pytest.fixture(scope="session")
def state_of(same_bits: Callable[[torch.Tensor, torch.Tensor], bool]) -> type:
    """A model's whole state, to compare with what it is later: ``state = state_of(model); state.assert_kept()``."""

    class State:
        def __init__(self, model: torch.nn.Module) -> None:
            self.model = model
            self.before = self._read()

        def _read(self) -> dict[str, Any]:
            modules = dict(self.model.named_modules(remove_duplicate=False))
            return {
                "classes": {path: type(module) for path, module in modules.items()},
                "keys": list(self.model.state_dict()),
                "parameters": [name for name, _ in self.model.named_parameters(remove_duplicate=False)],
                "flags": {name: value.requires_grad for name, value in self.model.named_parameters()},
                "training": {path: module.training for path, module in modules.items()},
                "identities": {name: id(value) for name, value in self.model.named_parameters(remove_duplicate=False)},
                "hooks": {
                    path: [list(getattr(module, kind)) for kind in _HOOKS if getattr(module, kind)]
                    for path, module in modules.items()
                },
                "bits": {name: value.clone() for name, value in self._tensors().items()},
            }

        def _tensors(self) -> dict[str, torch.Tensor]:
            named = [*self.model.named_parameters(), *self.model.named_buffers()]
            lazy = torch.nn.parameter.UninitializedTensorMixin
            return {name: value.detach() for name, value in named if not isinstance(value, lazy)}

        def assert_kept(self) -> None:
            now = self._read()
            for kind, value in self.before.items():
                if kind != "bits":
                    assert now[kind] == value, kind
            assert list(now["bits"]) == list(self.before["bits"])
            for name, value in self.before["bits"].items():
                assert same_bits(now["bits"][name], value), f"the bits of {name}"

    return State


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs")
