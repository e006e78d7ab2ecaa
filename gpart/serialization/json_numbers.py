"""Numbers in JSON, which has none for NaN and the infinities: few readers take what Python writes for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, overload


@overload
def finite(value: float) -> float | None: ...
@overload
def finite(value: object) -> Any: ...
def finite(value: object) -> Any:
    """A value for ``json.dumps(allow_nan=False)``: with None in place of every number that is not finite.

    Args:
        value: a number, or mappings, lists and tuples of values; of others nothing is changed.

    Example:
        >>> finite({"loss": float("nan"), "scores": (0.5, float("inf"))})
        {'loss': None, 'scores': [0.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
