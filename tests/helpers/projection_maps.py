"""The maps P of every projection by their formulas in float64 and numpy, D x d, sharing no line with gpart."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

GOLDEN, WORD = 0x9E3779B97F4A7C15, 2**64


def mixed(state: int) -> int:
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % WORD
    state = (state ^ state >> 27) * 0x94D049BB133111EB % WORD
    return state ^ state >> 31


def splitmix(seed: int, number: int) -> int:
    """An output of SplitMix64, counted from 0."""
    return mixed((seed + (number + 1) * GOLDEN) % WORD)


def groups(projection: str, size: int, d: int, seed: int) -> np.ndarray:
    if projection == "authors-materialized":
        return np.random.RandomState(seed).randint(0, 2**32, size, dtype=np.uint32) % d
    if projection == "authors-stateless":
        return np.array([mixed((i + seed + GOLDEN) % WORD) % d for i in range(size)])
    return np.array([splitmix(splitmix(seed, 0), i) % d for i in range(size)])


def fastfood(size: int, d: int, seed: int) -> np.ndarray:
    width = 1
    while width < d:
        width *= 2
    hadamard = np.ones((1, 1))
    while len(hadamard) < width:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    keys, pieces = [splitmix(seed, number) for number in range(3)], []
    for block in range(-(-size // width)):
        at = range(block * width, (block + 1) * width)
        signs, order, levels = ([mixed((key + i * GOLDEN) % WORD) for i in at] for key in keys)
        b = np.diag([1.0 if value % 2 == 0 else -1.0 for value in signs])
        signed = [value - WORD if value >= WORD // 2 else value for value in order]
        pi = np.eye(width)[sorted(range(width), key=lambda r: signed[r])]
        # An arithmetic shift of the signed number, counted from the lowest level, is the upper 16 bits with its first flipped.
        ks = [(value >> 48) ^ 0x8000 for value in levels]
        g = np.array([round(NormalDist().inv_cdf((k + 0.5) / 2**16) * 2**16) / 2**16 for k in ks])
        s = 1 / np.sqrt((g**2).sum() * size)
        pieces.append(s * hadamard @ np.diag(g) @ pi @ hadamard @ b)
    return np.concatenate(pieces)[:size, :d]


def dense_map(projection: str, size: int, d: int, seed: int, isometric: bool = True) -> np.ndarray:
    """P."""
    if projection == "fastfood":
        return fastfood(size, d, seed)
    found = groups(projection, size, d, seed)
    sizes = np.bincount(found, minlength=d)
    p = np.zeros((size, d))
    p[np.arange(size), found] = (1 / np.sqrt(np.maximum(sizes, 1)))[found] if isometric else 1.0
    return p
