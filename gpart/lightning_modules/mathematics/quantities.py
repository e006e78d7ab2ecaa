"""Reads final answers that are numbers, exactly."""

from __future__ import annotations

import re
from fractions import Fraction

from gpart.lightning_modules.mathematics.spelling import LONGEST, tidied
from gpart.lightning_modules.mathematics.units import is_unit, with_words, words_of

_WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]*)?|\.[0-9]+)"
# The numerator and the denominator of \frac: {12}, or a single digit.
_TOP = rf"(?:\{{\s*(?P<top>[-+]?\s*{_DECIMAL})\s*\}}|(?P<top_digit>[0-9]))"
_BOTTOM = _TOP.replace("top", "bottom")
# What stands first is tried first: the longer forms before the shorter ones that they begin with.
_NUMBER = re.compile(
    rf"\s*(?P<sign>[-+]?)\s*(?:(?P<whole>{_WHOLE})\s+(?P<part>[1-9][0-9]*)\s*/\s*(?P<parts>[0-9]+)"
    rf"|(?P<over>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})"
    rf"|(?P<mixed>{_WHOLE})?\s*\\frac\s*{_TOP}\s*{_BOTTOM}"
    r"|(?P<before>[0-9]*)\.(?P<once>[0-9]*)\s*\\overline\s*\{\s*(?P<again>[0-9]+)\s*\}"
    r"|(?P<power>[0-9]+(?:\.[0-9]+)?[eE][-+]?[0-9]{1,3})(?![0-9])"  # at most 999: the number is written out
    r"|(?P<spaced>[1-9][0-9]{0,2}(?: [0-9]{3})+(?:\.[0-9]+)?)(?![0-9]|\s+[0-9])"
    rf"|(?P<plain>{_DECIMAL}))(?P<behind>.*)",
    re.DOTALL,
)
_SIGNS = re.compile(r"[$%\u00b0\u20ac\u00a3]|\\circ|\\degree")


def _value(match: re.Match[str]) -> Fraction | None:
    def of(*names: str) -> Fraction:
        written = next((match[name] for name in names if match[name] is not None), "0")
        return Fraction(re.sub(r"[,\s+]", "", written))

    value = of("plain", "whole", "mixed", "power", "spaced")
    if match["again"] is not None:  # 1.2 and 34 again and again: (1234 - 12) / 990
        once, again = len(match["once"]), len(match["again"])
        first = int("0" + match["before"] + match["once"])
        value = Fraction(first * (10**again - 1) + int(match["again"]), 10**once * (10**again - 1))
    if match["parts"] or match["under"] or match["bottom"] or match["bottom_digit"]:
        under = of("under", "parts", "bottom", "bottom_digit")
        if under == 0:
            return None
        value += of("over", "part", "top", "top_digit") / under
    return -value if match["sign"] == "-" else value


def read(text: str) -> Fraction | None:
    """Returns the exact value of a tidied answer that is a number, and None for any other answer."""
    value, words = _split(text)
    return None if value is None else with_words(value, words)


def number(text: str) -> Fraction | None:
    r"""Returns the exact value of an answer that is a number, and None for any other answer.

    Commas or blanks may stand between groups of three digits. Currency, percent and degree signs and known units are
    removed (50% is 50, as GSM8K and MATH score it), and words such as *thirds* and *million* are read with the number;
    see ``units``. ``1\frac{1}{2}``, ``1 1/2`` and 1½ are mixed numbers.

    Example:
        >>> [str(number(text)) for text in (r"\$1,250.50", r"-\frac12", "1 1/2", "50%", r"15\mbox{ cm}^2")]
        ['2501/2', '-1/2', '3/2', '50', '15']
        >>> [str(number(text)) for text in ("$5 per hour", "2 thirds", "5 million", r"0.1\overline{6}", "3e5", "1 234")]
        ['5', '2/3', '5000000', '1/6', '300000', '1234']
        >>> [number(text) for text in ("1,6", "10:30", "2x", "2 xy", r"3\pi", "12 AM", "20 fewer apples", "1/0")]
        [None, None, None, None, None, None, None, None]
    """
    return None if len(text) > LONGEST else read(tidied(text))


def has_unit(text: str) -> bool:
    """Returns whether an answer is a number with known words behind it, or with a sign of a unit.

    Example:
        >>> [has_unit(text) for text in ("18 eggs", "2 thirds", "50%", "18", "2 xy", "2x")]
        [True, True, True, False, False, False]
    """
    return number(text) is not None and (bool(_SIGNS.search(text)) or bool(_split(tidied(text))[1]))


def before_other_words(text: str) -> Fraction | None:
    """Returns the number before words that are no unit; None if there is no such number, or no such word.

    Example:
        >>> [str(before_other_words(text)) for text in ("6 pm", "2 thirds", "18 eggs", "2 + x", "18")]
        ['6', '2', 'None', 'None', 'None']
    """
    value, words = (None, []) if len(text) > LONGEST else _split(tidied(text))
    return None if not words or is_unit(words) else value


def _split(text: str) -> tuple[Fraction | None, list[str]]:
    """Returns the number that a tidied answer begins with, and the words behind it; no number if there is more."""
    match = _NUMBER.fullmatch(text)
    value = None if match is None else _value(match)
    words = None if match is None else words_of(match["behind"])
    return (None, []) if value is None or words is None else (value, words)
