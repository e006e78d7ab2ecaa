r"""Final answers of mathematical solutions: where they stand, and whether they equal the reference's.

For GSM8K (``#### 18``), MetaMathQA (``The answer is: 18``) and MATH (``\boxed{18}``).
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from typing import Any

from gpart.lightning_modules.mathematics.latex_strings import LONGEST, number, same

# ##### is a heading of another level, and \boxedfoo another command.
_MARKER = re.compile(r"(?<!#)####(?=\s|\Z)|\bthe answer is\b:?|\\(?:boxed|fbox)(?![A-Za-z])[ \t]*", re.IGNORECASE)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_END = re.compile(r"\$|\\\)|\\\]|\n")  # Hendrycks et al. read \boxed 5$ up to the dollar


def _box(text: str, start: int) -> str | None:
    r"""What a ``\boxed`` holds whose braces start here; None if they do not end."""
    if not text.startswith("{", start):
        return _BARE_END.split(text[start:], maxsplit=1)[0]
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)  # \{ and \} are no group
        if depth == 0:
            return text[start + 1 : brace.start()]
    return None


def _stripped(text: str) -> str:
    start, end = 0, len(text)
    while start < end:
        if text[start].isspace():
            start += 1
        elif text[end - 1].isspace() or text[end - 1] == ".":
            end -= 1
        elif text.startswith(("**", r"\(", r"\["), start, end):
            start += 2
        elif text.endswith(("**", r"\)", r"\]"), start, end):
            end -= 2
        elif end - start > 1 and text[start] == text[end - 1] == "$" and text[end - 2] != "\\":
            start, end = start + 1, end - 1
        else:
            break
    return text[start:end]


def extract_answer(text: str) -> str | None:
    r"""The final answer of a solution, or None: what follows the last marker in the text, by the strict rule.

    The markers are ``####`` followed by a blank, ``The answer is`` with or without a colon, in any case, and ``\boxed``
    or ``\fbox``. The first two are followed by the answer up to the end of the line, a box holds it in balanced braces
    (``\boxed 5`` up to a dollar sign or the end of the line). Blanks, full stops at the end, surrounding dollar signs,
    ``\( \)``, ``\[ \]`` and ``**`` are no part of it. An empty answer, or a last box that does not end, is none.

    Example:
        >>> extract_answer("She makes 9 * 2 = $18 a day.\n#### 18\nThe answer is: 18")
        '18'
        >>> extract_answer(r"Hence $x = \boxed{\frac{1}{2}}$, as $2x = \boxed{1}$ has the answer $\boxed{\frac12}$.")
        '\\frac12'
        >>> extract_answer("I think that it is 18.") is None
        True
    """
    last = None
    for last in _MARKER.finditer(text):  # noqa: B007  (the last one is what is looked for)
        pass
    if last is None:
        return None
    inside = _box(text, last.end()) if last[0].startswith("\\") else text[last.end() :].split("\n", 1)[0]
    return _stripped(inside or "") or None


def _of_reference(reference: str) -> str:
    answer = extract_answer(reference)
    if answer is None:
        raise ValueError(
            "a reference must hold its final answer after '#### ' or 'The answer is:', or in \\boxed{...}; "
            f"got {reference!r}"
        )
    return answer


def exact_match(output: str, reference: str) -> bool:
    r"""Whether the final answers of both texts are there and are equal.

    As exact numbers if both are numbers, else as strings after MATH's normalisation; see ``latex_strings``.

    Args:
        output: a generated solution.
        reference: the data set's solution.

    Raises:
        ValueError: if the reference has no final answer.

    Example:
        >>> exact_match(r"It costs $\boxed{\$1{,}000}$.", "#### 1000")
        True
        >>> exact_match("The answer is: 0.5", r"\boxed{\dfrac{1}{2}}"), exact_match("It is 0.5", r"\boxed{\dfrac{1}{2}}")
        (True, False)
    """
    wanted = _of_reference(reference)
    answer = extract_answer(output)
    return answer is not None and same(answer, wanted)


def check_verifier() -> None:
    """Refuses where ``verified_match`` could not run.

    Raises:
        ValueError: if math-verify, or the parser that it needs, cannot be imported.
    """
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"verifying answers needs math-verify (pip install 'gpart-lightning[math]'); importing it failed: {error}"
        ) from error


_TAIL = 2000  # characters of an output that are parsed
_DEEPEST = 25  # brackets in brackets; the parser's time grows steeply with them (900 deep: above 20 seconds)
_LARGEST = 4000  # digits; Python itself refuses to print more than 4,300
_EXPANDED = 20  # the largest power of a sum: comparing may expand it
_NODES = 200  # of a parsed expression; comparing may simplify it
# What the parser itself would compute: powers of powers of numbers, large exponents, factorials and binomials.
_EXPLOSIVE = re.compile(
    r"(?:\^|\*\*)\s*[-+]?[0-9]+\s*(?:\^|\*\*|!)"
    r"|(?:\^|\*\*)\s*[{(](?:[^})A-Za-z\\]|\\cdot|\\times)*(?:\^|\*\*|!)"
    r"|(?:\^|\*\*)[\s{(]*[-+]?\s*[0-9]{6,}"
    r"|[0-9]{6,}\s*!"
    r"|[0-9)}]\s*!\s*!|!!!!"
    r"|\\[dt]?binom\W*(?:[0-9]{5,}|[0-9]+\s*[\^!])"
    r"|[0-9]{5,}\s*\}?\s*\\choose"
)
_GROWING = {"factorial", "factorial2", "subfactorial", "binomial", "gamma", "exp"}
_UNDONE = {"Integral", "Sum", "Product", "Limit", "Derivative"}  # comparing would carry them out


def _too_deep(text: str) -> bool:
    depth = 0
    for character in text:
        depth = max(0, depth + (character in "([{") - (character in ")]}"))
        if depth > _DEEPEST:
            return True
    return False


def _digits(node: Any) -> float:
    """An upper bound of the digits that a parsed expression's value has; infinite where it must not be computed."""
    name = type(node).__name__
    if name in _UNDONE:
        return math.inf
    if getattr(node, "is_Rational", False):
        return max(0.3, math.log10(max(abs(int(node.p)), int(node.q), 1)))
    children = [_digits(child) for child in getattr(node, "args", ())]
    if not children or math.inf in children:
        return max(children, default=1.0)
    if name in {"Pow", "MatPow"}:
        exponent = 10 ** min(children[1], 9)
        if exponent > _EXPANDED and type(node.args[0]).__name__ == "Add":
            return math.inf
        digits = children[0] * exponent
    elif name in _GROWING:
        digits = max(children) * 10 ** min(max(children), 9)
    else:
        digits = sum(children)
    return digits if digits <= _LARGEST else math.inf


def _costly(parsed: Any) -> bool:
    from sympy import preorder_traversal

    if isinstance(parsed, str):
        return False
    if sum(1 for _ in itertools.islice(preorder_traversal(parsed), _NODES + 1)) > _NODES:
        return True
    return _digits(parsed) == math.inf


def _parsed(text: str, answer: str = "") -> list[Any]:
    """What math-verify reads in a text, with the answer's value if it is a number; nothing where that would explode."""
    import math_verify
    from sympy import Rational

    if _too_deep(text) or _EXPLOSIVE.search(text):
        return []
    readings = math_verify.parse(text, parsing_timeout=None)
    if (value := number(answer)) is not None:  # the library reads no unit that it does not know
        readings.append(Rational(value.numerator, value.denominator))
    return [] if any(map(_costly, readings)) else readings


def verified_match(output: str, reference: str) -> bool:
    r"""Whether math-verify holds the output's answer for equal to the reference's.

    The output's answer is what ``extract_answer`` finds; only without a marker the library looks for one in the last
    2,000 characters, since it prefers any ``answer is`` in the reasoning to a later ``####``, and does not read LaTeX
    without dollar signs.

    The library's own time limit is a signal, which works in the main thread only and takes the handler from Lightning.
    It is off; instead these count as no match: an answer above 1,000 characters, brackets 25 deep, a power whose exponent is a power (``9^{9^9}``), an
    exponent of six digits, a factorial or binomial of as many, and a parsed answer with more than 200 parts, more than
    4,000 digits, or a sum, integral or limit left to compute.

    Args:
        output: a generated solution.
        reference: the data set's solution.

    Raises:
        ValueError: if the reference has no final answer, or math-verify cannot be imported.
    """
    wanted = _of_reference(reference)
    check_verifier()
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns of the time limit and of what it cannot read
    answer = extract_answer(output)
    if max(len(answer or ""), len(wanted)) > LONGEST:
        return False
    found = _parsed(output[-_TAIL:]) if answer is None else _parsed(rf"\boxed{{{answer}}}", answer)
    return bool(math_verify.verify(_parsed(rf"\boxed{{{wanted}}}", wanted), found, timeout_seconds=None))
