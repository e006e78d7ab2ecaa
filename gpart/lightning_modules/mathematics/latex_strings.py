"""Brings final answers, in LaTeX or plain words, to one form: an exact number, or else a normalised string.

The rules for strings are those of MATH's own scoring (Hendrycks et al., "Measuring Mathematical Problem Solving With
the MATH Dataset", 2021; https://github.com/hendrycks/math, math_equivalence.py), written anew, with these differences:

- Numbers are compared exactly instead of by their spelling, also inside tuples and intervals.
- A blank between two digits stays (``1 2`` is not ``12``), and so do the row breaks of a matrix.
- A unit is removed at the end only. A word that changes the value (``million``, ``p.m.``) or joins two answers
  (``and``, ``or``) is never removed.
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 1000
"""The largest number of characters in an answer that is normalised. Longer texts are compared as they are: no real
answer is so long, and the time that the rules below take may grow faster than the length."""

_CHARACTERS = str.maketrans(
    {
        "\u2212": "-",
        "\u00d7": r"\cdot ",
        "\u00b7": r"\cdot ",
        "\u03c0": r"\pi ",
        "\u221e": r"\infty ",
        "\u222a": r"\cup ",
        "\u00b0": "",
        "\u00b2": "^2",
        "\u00b3": "^3",
        "\u20ac": "",
        "\u00a3": "",
        "\u00a0": " ",
        "\n": " ",
    }
)
# The order matters: each rule is applied to the result of the rules above it.
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<!\\)\\!|\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\displaystyle", ""),
        (r"\{,\}", ","),
        (r"(?<=[0-9])\\,(?=[0-9]{3})", ""),  # 10\,000
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~", " "),
        (r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degrees?(?![A-Za-z])", ""),
        (r"\\?[$%]", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\times(?![A-Za-z])", r"\\cdot "),
        (r"\\l(?:eq|e)(?![A-Za-z])", r"\\le "),
        (r"\\g(?:eq|e)(?![A-Za-z])", r"\\ge "),
        (r"\\(?:mbox|(?:text|math)(?:rm|bf|it|normal))(?![A-Za-z])", r"\\text"),
    )
]
_WRAPPED = re.compile(r"\\text\s*\{([^{}]*)\}")
_ASSIGNED = re.compile(r"\s*[A-Za-z][A-Za-z0-9]?\s*=([^=]*)")

# Words behind a number that are no units: they change its value, or they are followed by more of the answer.
_NO_UNIT = (
    r"(?:and|or|to|pi|sqrt|frac|log|ln|sin|cos|tan|plus|minus|times|over|mod|[ap]\.?\s?m"
    r"|dozens?|hundreds?|thousands?|millions?|billions?)(?![A-Za-z])"
)
_WORD = rf"(?!{_NO_UNIT})[A-Za-z]+(?:\.|\^\{{?[0-9]\}}?)?"
_WORDS = rf"{_WORD}(?:[\s/-]+{_WORD})*"
_POWER = r"(?:\s*\^\s*\{?[0-9]\}?)?"
# Without a blank before it, only what can't be a product of variables is a unit: 2xy, 3 x and 5/x have none.
_GLUED = r"(?:[ckm]m|[km]g|m[lL]|mph|km/h|lbs?|oz|ft|in|hrs?|min|sec)(?:\^\{?[23]\}?)?"
_UNIT = (
    rf"(?:\s*(?:\\text\s*\{{\s*{_WORDS}\s*\}}{_POWER}|{_GLUED})"
    rf"|(?:\s+(?=[A-Za-z]{{2}})|\s*/\s*(?=[A-Za-z]{{3}})){_WORDS})"
)
_UNIT_IN_TEXT = re.compile(rf"(?:\s\\text\s*\{{\s*|\\text\s*\{{\s+){_WORDS}\s*\}}{_POWER}\s*\Z")

_WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]*)?|\.[0-9]+)"
# The numerator and the denominator of \frac: {12}, or a single digit.
_TOP = rf"(?:\{{\s*(?P<top>[-+]?\s*{_DECIMAL})\s*\}}|(?P<top_digit>[0-9]))"
_BOTTOM = _TOP.replace("top", "bottom")
_NUMBER = re.compile(
    rf"\s*(?P<sign>[-+]?)\s*(?:(?P<plain>{_DECIMAL})"
    rf"|(?P<over>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})"
    rf"|(?P<whole>{_WHOLE})\s+(?P<part>[0-9]+)\s*/\s*(?P<parts>[0-9]+)"
    rf"|(?P<mixed>{_WHOLE})?\s*\\frac\s*{_TOP}\s*{_BOTTOM})(?:{_UNIT})?\s*"
)

# The last rules for the spelling of a string, in this order.
_SPELLING = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (_WRAPPED.pattern, r"\1"),
        (r"\\sqrt\s*([^\s{\[\\])", r"\\sqrt{\1}"),
        (r"\\frac\s*([^\s{\\])", r"\\frac{\1}"),
        (r"(\\frac\s*\{(?:[^{}]|\{[^{}]*\})*\})\s*([^\s{\\])", r"\1{\2}"),
        (r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2"),
        (r"\\([{}])", r"\1"),
        (r"(?<![0-9])\s+|\s+(?![0-9])", ""),
    )
]


def _tidied(text: str) -> str:
    """Gives signs, blanks, commands and wrappers one spelling.

    Currency, percent and degree signs, a full stop at the end, and a leading ``x=`` are removed.
    """
    if r"\begin" not in text:  # in a matrix, a double backslash ends a row; elsewhere it is an escape written twice
        text = text.replace("\\\\", "\\")
    text = text.translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if assigned := _ASSIGNED.fullmatch(text):
        text = assigned[1]
    text = text.strip()
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[1].strip()
    return text.removesuffix(".")


def _read(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None

    def of(*names: str) -> Fraction:
        written = next((match[name] for name in names if match[name] is not None), "0")
        return Fraction(re.sub(r"[,\s+]", "", written))

    under = of("under", "parts", "bottom", "bottom_digit")
    value = of("plain", "whole", "mixed")
    if match["plain"] is None:
        if under == 0:
            return None
        value += of("over", "part", "top", "top_digit") / under
    return -value if match["sign"] == "-" else value


def number(text: str) -> Fraction | None:
    r"""Returns the exact value of an answer that is a number, and None for any other answer.

    Commas may stand between groups of three digits. Currency, percent and degree signs and units are removed (50% is
    50, as GSM8K and MATH score it). ``1\frac{1}{2}`` and ``1 1/2`` are mixed numbers.

    Example:
        >>> [str(number(text)) for text in (r"\$1,250.50", r"-\frac12", "1 1/2", "50%", r"15\mbox{ cm}^2")]
        ['2501/2', '-1/2', '3/2', '50', '15']
        >>> str(number("$5 per hour"))
        '5'
        >>> [number(text) for text in ("1,6", "10:30", "2x", r"3\pi", "5 million", "1/0")]
        [None, None, None, None, None, None]
    """
    return None if len(text) > LONGEST else _read(_tidied(text))


def normalised(text: str) -> str:
    r"""Returns the normalised spelling of an answer. Two answers that are no numbers are equal if these are equal.

    Example:
        >>> normalised(r"\left( 0.5,\, \dfrac{\pi}2 \right)")
        '(1/2,\\frac{\\pi}{2})'
        >>> normalised(r"x = 3\sqrt2 \text{ cm}"), normalised(r"\text{Evelyn}")
        ('3\\sqrt{2}', 'Evelyn')
    """
    if len(text) > LONGEST:
        return text
    text = _tidied(text)
    text = _UNIT_IN_TEXT.sub("", text) or text
    parts = re.split(r"([()\[\],;]|\\[{}])", text)
    # 000 after a comma is the end of 1,000, and not the number 0.
    values = [None if re.match(r"\s*0[0-9]", part) else _read(part) for part in parts]
    text = "".join(part if value is None else str(value) for part, value in zip(parts, values, strict=True))
    for pattern, replacement in _SPELLING:
        text = pattern.sub(replacement, text)
    return text


def same(one: str, two: str) -> bool:
    """Returns whether two answers are equal, as numbers if both are numbers, else as normalised strings."""
    first, second = number(one), number(two)
    if first is not None and second is not None:
        return first == second
    return normalised(one) == normalised(two)
