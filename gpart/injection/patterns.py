"""Regular expressions for the names of modules, matched in bounded time: a pattern may stand in a file that somebody sent.

Invariant: the answer is that of ``re.fullmatch``, or an error. ``re`` tries one way after the other and goes back, which may
take longer than anybody waits. Here all positions that a part of the pattern can reach are one set, and steps are counted.
What needs the text of an earlier group, or forbids going back, is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

# No public module of Python gives a pattern's parts, and typeshed leaves these out.
from re import _compiler, _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from gpart.errors import GPartError

_MOST_STEPS = 200_000
"""For one name; a pattern of people's own takes some hundreds."""

_REFUSED = {
    _constants.GROUPREF: "a reference to a group",
    _constants.GROUPREF_EXISTS: "a choice by a group",
    _constants.ATOMIC_GROUP: "an atomic group",
    _constants.POSSESSIVE_REPEAT: "a possessive quantifier",
}


class _Name:
    """A name that is being matched, and how many steps are left for it."""

    def __init__(self, text: str) -> None:
        self.text, self.left = text, _MOST_STEPS


_Positions = set[int]
_Step = Callable[[_Name, _Positions], _Positions]
"""From the positions where a part of the pattern starts to those where it can end."""


@lru_cache(maxsize=4096)
def fullmatch(pattern: str, name: str) -> bool:
    r"""Whether a regular expression matches a whole name.

    Raises:
        GPartError: if that takes too many steps, or the expression has a part that is refused.

    Example:
        >>> fullmatch(r".*\.(query|value)", "layer.0.query"), fullmatch(r"([a-z0-9.]+)+!", "layer.0.query" * 9)
        (True, False)
    """
    try:
        return len(name) in _parsed(pattern)(_Name(name), {0})
    except (RecursionError, _TooLongError):
        raise GPartError(
            f"the regular expression {pattern[:200]!r} takes more than {_MOST_STEPS} steps to match the name {name!r}"
        ) from None


@lru_cache(maxsize=256)
def _parsed(pattern: str) -> _Step:
    tree = _parser.parse(pattern)
    return _sequence(tree, tree.state.flags)


class _TooLongError(Exception):
    pass


def _sequence(parts: Any, flags: int) -> _Step:
    steps = [_step(operation, value, parts.state, flags) for operation, value in parts]

    def run(name: _Name, at: _Positions) -> _Positions:
        name.left -= 1
        for step in steps:
            name.left -= len(at)
            if name.left < 0:
                raise _TooLongError
            if not at:
                break
            at = step(name, at)
        return at

    return run


def _step(operation: Any, value: Any, state: Any, flags: int) -> _Step:
    if operation in _REFUSED:
        raise GPartError(f"{state.str[:200]!r} has {_REFUSED[operation]}, which is not matched in names")
    if operation is _constants.SUBPATTERN:
        _, added, removed, inner = value
        return _sequence(inner, (flags | added) & ~removed)
    if operation is _constants.BRANCH:
        ways = [_sequence(way, flags) for way in value[1]]
        return lambda name, at: {end for way in ways for end in way(name, at)}
    if operation in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
        low, high, inner = value
        return _repeated(low, high, _sequence(inner, flags))
    if operation in (_constants.ASSERT, _constants.ASSERT_NOT):
        direction, inner = value
        return _looking(_sequence(inner, flags), direction > 0, operation is _constants.ASSERT)
    one = _compiler.compile(_parser.SubPattern(state, [(operation, value)]), flags)  # a character, or a place as ^
    return lambda name, at: {found.end() for start in at if (found := one.match(name.text, start))}


def _repeated(low: int, high: int, inner: _Step) -> _Step:
    def run(name: _Name, at: _Positions) -> _Positions:
        for _ in range(low):
            before, at = at, inner(name, at)
            if at == before:
                break
        reached, new = set(at), at
        for _ in range(high - low):
            new = inner(name, new) - reached
            if not new:
                break
            reached |= new
        return reached

    return run


def _looking(inner: _Step, ahead: bool, wanted: bool) -> _Step:
    def seen(name: _Name, place: int) -> bool:
        if ahead:
            return bool(inner(name, {place}))
        return any(place in inner(name, {start}) for start in range(place + 1))

    return lambda name, at: {place for place in at if seen(name, place) == wanted}
