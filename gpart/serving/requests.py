"""What a request may hold: its fields, each with its limit.

Invariant: what these functions give back has the asked kind and is within its limit; everything else is :class:`RequestError`
with an HTTP status and a reason. No field is ever a path.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gpart.errors import GPartError

UNPROCESSABLE, NOT_FOUND, BROKEN = 422, 404, 500


class RequestError(GPartError):
    """A request that gets no answer.

    Attributes:
        status: HTTP's.
        detail: the reason, for the client.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Raises:
        GPartError: if one is below 1.
    """

    tokens: int = 512
    """Of a text; of prompt and continuation together. At most what the model has positions for."""

    characters: int = 100_000
    """Of a text, which is looked at before it is cut into tokens."""

    new_tokens: int = 256
    """Of a continuation."""

    image_bytes: int = 10 << 20
    """Of a PNG or JPEG file."""

    pixels: int = 16_000_000
    """Of an image."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise GPartError(f"the limit of {name} must be 1 or more, got {value}")


def check_fields(body: Mapping[str, Any], known: Collection[str]) -> None:
    """Checks that nothing is asked that is not understood.

    Raises:
        RequestError: if a field is unknown.
    """
    if unknown := sorted(set(body) - set(known)):
        shown = ", ".join(repr(name[:40]) for name in unknown[:5])
        raise RequestError(UNPROCESSABLE, f"unknown fields: {shown}; known are {', '.join(sorted(known))}")


def text(body: Mapping[str, Any], name: str, limits: Limits) -> str:
    """A text field.

    Raises:
        RequestError: if it is missing, empty, too long or no Unicode text.

    Example:
        >>> text({"text": "a film"}, "text", Limits())
        'a film'
        >>> text({"text": 3}, "text", Limits())
        Traceback (most recent call last):
            ...
        gpart.serving.requests.RequestError: 'text' must be a text of 1 to 100000 characters, got int
    """
    value = body.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= limits.characters:
        found = f"{len(value)} characters" if isinstance(value, str) else _kind(value)
        raise RequestError(
            UNPROCESSABLE, f"{name!r} must be a text of 1 to {limits.characters} characters, got {found}"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise RequestError(UNPROCESSABLE, f"{name!r} is no Unicode text: {error.reason}") from None
    return value


def whole(body: Mapping[str, Any], name: str, usual: int, most: int) -> int:
    """A whole number from 1 to ``most``.

    Raises:
        RequestError: if it is anything else.
    """
    value = body.get(name, usual)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise RequestError(UNPROCESSABLE, f"{name!r} must be a whole number from 1 to {most}, got {_shown(value)}")
    return value


def number(body: Mapping[str, Any], name: str, usual: float, least: float, most: float) -> float:
    """A number between two.

    Raises:
        RequestError: if it is anything else.
    """
    value = body.get(name, usual)
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or not least <= value <= most:
        raise RequestError(UNPROCESSABLE, f"{name!r} must be a number from {least} to {most}, got {_shown(value)}")
    return float(value)


def check_tokens(count: int, more: int, limits: Limits) -> None:
    """Checks a text's length in tokens.

    Args:
        count: its own.
        more: of the continuation that is asked for.
        limits: the server's.

    Raises:
        RequestError: if it is above the limit, or 0.
    """
    if not 1 <= count <= limits.tokens - more:
        asked = f"{count} tokens" + (f" and {more} new ones" if more else "")
        raise RequestError(UNPROCESSABLE, f"the text has {asked}; the server takes 1 to {limits.tokens} in all")


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _shown(value: object) -> str:
    return str(value)[:40] if isinstance(value, (int, float)) else _kind(value)
