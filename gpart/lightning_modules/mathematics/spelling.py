"""Gives signs, blanks, commands and wrappers in an answer one spelling."""

from __future__ import annotations

import re

from gpart.lightning_modules.mathematics.units import TEXT

LONGEST = 1000
"""The largest number of characters in an answer that is normalised. Longer texts are compared as they are: no real
answer is so long, and the time that the rules take may grow faster than the length."""

WRAPPERS = re.compile(r"\\(?:mbox|(?:text|math)(?:rm|bf|it|normal))(?![A-Za-z])")
_CHARACTERS = str.maketrans(
    {
        "\u2212": "-",
        "\u00d7": r"\cdot ",
        "\u00b7": r"\cdot ",
        "\u03c0": r"\pi ",
        "\u221e": r"\infty ",
        "\u222a": r"\cup ",
        "\u2205": r"\emptyset ",
        "\u00b0": "",
        "\u00b2": "^2",
        "\u00b3": "^3",
        "\u20ac": "",
        "\u00a3": "",
        "\u2044": "/",
        **dict.fromkeys("\u00a0\u2009\u202f\n", " "),  # blanks that do not break, thin ones, and the end of a line
        **{
            one: f" {part} "
            for one, part in zip(
                "\u00bd\u2153\u2154\u00bc\u00be\u215b", ("1/2", "1/3", "2/3", "1/4", "3/4", "1/8"), strict=True
            )
        },
    }
)
_BASES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_BASE = {**{name: str(number) for number, name in enumerate(_BASES, start=2)}, "sixteen": "16"}
# The order matters: each rule is applied to the result of the rules above it.
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<!\\)\\!|\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\displaystyle", ""),
        (r"\{([,:])\}", r"\1"),
        (r"(?<=[0-9])\\,(?=[0-9]{3})", ""),  # 10\,000
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~", " "),
        (r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degrees?(?![A-Za-z])", ""),
        (r"\\?[$%]", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\times(?![A-Za-z])", r"\\cdot "),
        (r"\\l(?:eq|e)(?![A-Za-z])", r"\\le "),
        (r"\\g(?:eq|e)(?![A-Za-z])", r"\\ge "),
        (WRAPPERS.pattern, r"\\text"),
        (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\text\s*\{\s*infinity\s*\}", r"\\infty "),
        (r"\\(begin|end)\s*\{bmatrix\}", r"\\\1{pmatrix}"),
        (r"\\bar(?![A-Za-z])", r"\\overline"),
    )
]
_NAMED_BASE = re.compile(rf"_\s*\{{?\s*(?:\\text\s*\{{)?\s*({'|'.join(_BASE)})\s*\}}?\s*\}}?(?=\s*\Z)")
_ASSIGNED = re.compile(r"\s*[A-Za-z][A-Za-z0-9]?\s*=([^=]*)")
# One number or one letter: (18) and (C), but neither the point (1,234) nor the product (x+1).
_IN_BRACKETS = re.compile(
    r"\(\s*([-+]?[0-9]+(?:\.[0-9]+)?(?:/[0-9]+)?|[A-Za-z])\s*\)|\[\s*([-+]?[0-9]+(?:\.[0-9]+)?)\s*\]"
)


def tidied(text: str) -> str:
    """Gives signs, blanks, commands and wrappers one spelling.

    Currency, percent and degree signs, a full stop at the end, a leading ``x=``, and brackets around a lone number or
    letter are removed.
    """
    if r"\begin" not in text:  # in a matrix, a double backslash ends a row; elsewhere it is an escape written twice
        text = text.replace("\\\\", "\\")
    text = text.translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _NAMED_BASE.sub(lambda base: f"_{{{_BASE[base[1]]}}}", text)
    if assigned := _ASSIGNED.fullmatch(text):
        text = assigned[1]
    text = text.strip()
    if wrapped := TEXT.fullmatch(text):
        text = wrapped[1].strip()
    if bracketed := _IN_BRACKETS.fullmatch(text):
        text = bracketed[1] or bracketed[2]
    return r"\infty" if text.lower() == "infinity" else text.removesuffix(".")


# The last rules for the spelling of a string, in this order.
_SPELLING = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (TEXT.pattern, r"\1"),
        (r"\\sqrt\s*([^\s{\[\\])", r"\\sqrt{\1}"),
        (r"\\frac\s*([^\s{\\])", r"\\frac{\1}"),
        (r"(\\frac\s*\{(?:[^{}]|\{[^{}]*\})*\})\s*([^\s{\\])", r"\1{\2}"),
        (r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2"),
        (r"\\([{}])", r"\1"),
        (r"(?<![0-9])\s+|\s+(?![0-9])", ""),
    )
]


def spelled(text: str) -> str:
    """Returns a tidied answer without blanks and braces that mean nothing."""
    for pattern, replacement in _SPELLING:
        text = pattern.sub(replacement, text)
    return text
