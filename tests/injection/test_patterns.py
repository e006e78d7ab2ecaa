"""Regular expressions for names: what ``re`` answers, in bounded time."""

from __future__ import annotations

import random
import re

import pytest

from gpart.errors import GPartError
from gpart.injection.matching import matches
from gpart.injection.patterns import fullmatch

ATOMS = ["a", "b", r"\.", ".", r"\d", "[ab]", "[^a]", "$", "^", r"\b", "(?i:A)"]
ENDS = ["*", "+", "?", "*?", "{2}", "{1,2}", "{0,3}?", "{2,}"]


def made(draw: random.Random, depth: int = 0) -> str:
    def inner() -> str:
        return made(draw, depth + 1)

    kind = draw.randrange(10)
    if depth > 3 or kind < 3:
        return draw.choice(ATOMS)
    if kind < 6:
        return inner() + inner()
    if kind < 8:
        return f"({inner()}{draw.choice(['', '|' + inner()])}){draw.choice(ENDS)}"
    return draw.choice(["(?=", "(?!", "(?<=", "(?<!"]) + inner() + ")"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_answer_is_that_of_re() -> None:
    draw, found = random.Random(0), []
    for _ in range(1500):
        pattern = made(draw)
        try:
            expected = re.compile(pattern)
        except re.error:  # such as a look behind of no fixed width
            continue
        for name in ("".join(draw.choices("ab1.A", k=length)) for length in range(6)):
            found.append(fullmatch(pattern, name))
            assert found[-1] == (expected.fullmatch(name) is not None), (pattern, name)
    assert 500 < sum(found) < len(found) - 500


def test_what_re_goes_back_for_without_end_is_answered_or_refused() -> None:
    assert not matches("model.layers.0.self_attn.q_proj" * 3, r"([a-z0-9._]+)+!")
    assert not fullmatch("(.|.)*" * 9 + "!", "model.layers.0.self_attn.q_proj")
    for pattern in ("(" * 30 + ")+" * 30 + "x", "(.?" * 60 + ")+" * 60 + "!"):
        with pytest.raises(GPartError, match=r"takes more than 200000 steps to match the name 'aaa"):
            fullmatch(pattern, "a" * 40)


@pytest.mark.parametrize("pattern", [r"(a)\1", "(?>a)b", "a++", "(a)?(?(1)b|c)"])
def test_what_cannot_be_matched_so_is_refused(pattern: str) -> None:
    with pytest.raises(GPartError, match=f"{re.escape(repr(pattern))} has a.* is not matched in names"):
        fullmatch(pattern, "ab")
