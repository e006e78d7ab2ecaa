"""Arithmetic on adapters, without a model: read, measure, compare, add up, project.

Invariant: every number is the weight update's own, and what cannot be exact says what it costs.
"""

from gpart.arithmetic.combine import average, combine, interpolate, negate
from gpart.arithmetic.layout import Layout, layout_of, same_layout
from gpart.arithmetic.measures import (
    Comparison,
    Moments,
    compare,
    cosine,
    cosine_by_weight,
    distance,
    distance_by_weight,
    norm,
    norm_by_weight,
)
from gpart.arithmetic.project import Projection, project
from gpart.arithmetic.stored import Stored, read

__all__ = [
    "Comparison",
    "Layout",
    "Moments",
    "Projection",
    "Stored",
    "average",
    "combine",
    "compare",
    "cosine",
    "cosine_by_weight",
    "distance",
    "distance_by_weight",
    "interpolate",
    "layout_of",
    "negate",
    "norm",
    "norm_by_weight",
    "project",
    "read",
    "same_layout",
]
