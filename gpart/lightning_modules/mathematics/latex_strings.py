"""Brings final answers, in LaTeX or plain words, to one form: an exact number, or else a normalised string.

The rules for strings are those of MATH's own scoring (Hendrycks et al., "Measuring Mathematical Problem Solving With
the MATH Dataset", 2021; https://github.com/hendrycks/math, math_equivalence.py), written anew, with these differences:

- Numbers are compared exactly instead of by their spelling, also inside tuples, intervals and matrices.
- A blank between two digits stays (``1 2`` is not ``12``) but between groups of three; so do the row breaks of a matrix.
- A unit is removed at the end only, and only if it is a known one (``units``).
"""

from __future__ import annotations

import re

from gpart.lightning_modules.mathematics.quantities import number, read
from gpart.lightning_modules.mathematics.spelling import LONGEST, spelled, tidied
from gpart.lightning_modules.mathematics.units import is_unit, words_of

LAST_TEXT = re.compile(r"\\text\s*\{[^{}]*\}(?:\s*\^\s*\{?[0-9]\}?)?\s*\Z")
_CUTS = re.compile(r"([()\[\],;]|\\[{}])")
_CELLS = re.compile(r"([()\[\],;&]|\\\\|\\[{}]|\\(?:begin|end)\s*\{[a-z]*\})")


def without_unit(text: str) -> str:
    r"""Removes a known unit in ``\text`` from the end of an answer, if something stands before it."""
    last = LAST_TEXT.search(text)
    if last and text[: last.start()].strip() and is_unit(words_of(last[0]) or []):
        return text[: last.start()]
    return text


def normalised(text: str) -> str:
    r"""Returns the normalised spelling of an answer. Two answers that are no numbers are equal if these are equal.

    Example:
        >>> normalised(r"\left( 0.5,\, \dfrac{\pi}2 \right)")
        '(1/2,\\frac{\\pi}{2})'
        >>> normalised(r"x = 3\sqrt2 \text{ cm}"), normalised(r"\text{Evelyn}"), normalised("2 xy")
        ('3\\sqrt{2}', 'Evelyn', '2xy')
        >>> normalised(r"\begin{bmatrix} 0.5 \\ -\frac{1}{3} \end{bmatrix}")
        '\\begin{pmatrix}1/2\\\\-1/3\\end{pmatrix}'
    """
    if len(text) > LONGEST:
        return text
    text = without_unit(tidied(text))
    parts = (_CELLS if r"\begin" in text else _CUTS).split(text)
    # 000 after a comma is the end of 1,000, and not the number 0.
    values = [None if re.match(r"\s*0[0-9]", part) else read(part) for part in parts]
    return spelled("".join(part if value is None else str(value) for part, value in zip(parts, values, strict=True)))


def same(one: str, two: str) -> bool:
    """Returns whether two answers are equal: as numbers, as normalised strings, or in their spelling with the unit."""
    first, second = number(one), number(two)
    if first is not None and second is not None:
        return first == second
    if normalised(one) == normalised(two):
        return True
    return max(len(one), len(two)) <= LONGEST and spelled(tidied(one)) == spelled(tidied(two))  # 5 m is also 5m
