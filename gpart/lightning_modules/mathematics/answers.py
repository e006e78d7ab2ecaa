r"""The final answers of mathematical solutions: finds them in a text, and compares them with the reference's.

It reads the forms of GSM8K (``#### 18``), MetaMathQA (``The answer is: 18``) and MATH (``\boxed{18}``).
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from typing import Any

from gpart.errors import GPartError
from gpart.lightning_modules.mathematics.latex_strings import LONGEST, number, same

# Five hash signs are a heading of another level, and \boxedfoo is another command: neither is a marker.
_MARKER = re.compile(r"(?<!#)####(?=\s|\Z)|\bthe answer is\b:?|\\(?:boxed|fbox)(?![A-Za-z])[ \t]*", re.IGNORECASE)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_END = re.compile(r"\$|\\\)|\\\]|\n")  # Hendrycks et al. read \boxed 5$ up to the dollar sign


def _box(text: str, start: int) -> str | None:
    r"""Returns the content of a ``\boxed`` whose braces start here; None if the braces do not end."""
    if not text.startswith("{", start):
        return _BARE_END.split(text[start:], maxsplit=1)[0]
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)  # \{ and \} do not open or close a group
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
    r"""Returns the final answer of a solution: what follows the last marker in the text. It returns None without one.

    The markers are ``####`` followed by a blank; ``The answer is``, with or without a colon, in upper or lower case;
    and ``\boxed`` or ``\fbox``. After the first two, the answer reaches to the end of the line. A box holds the answer
    in balanced braces (``\boxed 5`` reaches to a dollar sign or the end of the line). Blanks, full stops at the end,
    and surrounding dollar signs, ``\( \)``, ``\[ \]`` and ``**`` are removed. An empty answer counts as none, and so
    does a last box that does not end.

    Example:
        >>> extract_answer("She makes 9 * 2 = $18 a day.\n#### 18\nThe answer is: 18")
        '18'
        >>> extract_answer(r"Hence $x = \boxed{\frac{1}{2}}$, as $2x = \boxed{1}$ has the answer $\boxed{\frac12}$.")
        '\\frac12'
        >>> extract_answer("I think that it is 18.") is None
        True
    """
    last = None
    for last in _MARKER.finditer(text):  # noqa: B007  # only the last one is needed
        pass
    if last is None:
        return None
    inside = _box(text, last.end()) if last[0].startswith("\\") else text[last.end() :].split("\n", 1)[0]
    return _stripped(inside or "") or None


def _of_reference(reference: str) -> str:
    answer = extract_answer(reference)
    if answer is None:
        raise GPartError(
            "a reference must hold its final answer after '#### ' or 'The answer is:', or in \\boxed{...}; "
            f"got {reference!r}"
        )
    return answer


def exact_match(output: str, reference: str) -> bool:
    r"""Returns whether both texts have a final answer, and these are equal.

    Answers are compared as exact numbers if both are numbers, else as strings after MATH's normalisation; see
    ``latex_strings``.

    Args:
        output: a generated solution.
        reference: the solution in the data set.

    Raises:
        GPartError: if the reference has no final answer.

    Example:
        >>> exact_match(r"It costs $\boxed{\$1{,}000}$.", "#### 1000")
        True
        >>> exact_match("The answer is: 0.5", r"\boxed{\dfrac{1}{2}}")
        True
        >>> exact_match("It is 0.5", r"\boxed{\dfrac{1}{2}}")
        False
    """
    wanted = _of_reference(reference)
    answer = extract_answer(output)
    return answer is not None and same(answer, wanted)


def check_verifier() -> None:
    """Checks that ``verified_match`` can run.

    Raises:
        GPartError: if math-verify, or the parser that it needs, can't be imported.
    """
    try:
        import math_verify  # noqa: F401, PLC0415  # an optional dependency
    except ImportError as error:
        raise GPartError(
            f"verifying answers needs math-verify (pip install 'gpart-lightning[math]'); importing it failed: {error}"
        ) from error


_TAIL = 2000  # only this many characters at the end of an output are parsed
_DEEPEST = 25  # nested brackets; the parser's time grows steeply with their depth (900 deep: above 20 seconds)
_LARGEST = 4000  # digits; Python itself refuses to print more than 4,300
_EXPANDED = 20  # the largest exponent of a sum, since a comparison may expand it
_NODES = 200  # the nodes of a parsed expression, since a comparison may simplify it
# What the parser would compute by itself: powers of powers of numbers, large exponents, factorials and binomials.
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
_UNDONE = {"Integral", "Sum", "Product", "Limit", "Derivative"}  # a comparison would compute them


def _too_deep(text: str) -> bool:
    depth = 0
    for character in text:
        depth = max(0, depth + (character in "([{") - (character in ")]}"))
        if depth > _DEEPEST:
            return True
    return False


def _digits(node: Any) -> float:
    """Returns an upper bound on the digits of a parsed expression's value; infinity if it must not be computed."""
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
    from sympy import preorder_traversal  # noqa: PLC0415  # comes with math-verify, an optional dependency

    if isinstance(parsed, str):
        return False
    if sum(1 for _ in itertools.islice(preorder_traversal(parsed), _NODES + 1)) > _NODES:
        return True
    return _digits(parsed) == math.inf


def _parsed(text: str, answer: str = "") -> list[Any]:
    """Returns math-verify's readings of a text, and the answer's value if it is a number.

    The list is empty if reading or comparing the text could take too long.
    """
    import math_verify  # noqa: PLC0415  # an optional dependency
    from sympy import Rational  # noqa: PLC0415  # comes with math-verify

    if _too_deep(text) or _EXPLOSIVE.search(text):
        return []
    readings = math_verify.parse(text, parsing_timeout=None)
    if (value := number(answer)) is not None:  # the library does not read a number with a unit that it does not know
        readings.append(Rational(value.numerator, value.denominator))
    return [] if any(map(_costly, readings)) else readings


def verified_match(output: str, reference: str) -> bool:
    r"""Returns whether the output's answer equals the reference's, as the library math-verify judges.

    The output's answer is the one that ``extract_answer`` finds. Only if there is no marker, the library looks for an
    answer in the last 2,000 characters: it would prefer any ``answer is`` in the reasoning to a later ``####``, and it
    does not read LaTeX without dollar signs.

    The library's own time limit is off: it uses a signal, which works in the main thread only and would replace
    Lightning's handler. Instead, these count as no match: an answer of more than 1,000 characters; brackets nested more
    than 25 deep; a power whose exponent is a power (``9^{9^9}``); an exponent of six or more digits, or a factorial of
    such a number; a binomial of numbers with five or more digits; and a parsed answer with more than 200 nodes, more
    than 4,000 digits, or a sum, integral or limit that is still to be computed.

    Args:
        output: a generated solution.
        reference: the solution in the data set.

    Raises:
        GPartError: if the reference has no final answer, or math-verify can't be imported.
    """
    wanted = _of_reference(reference)
    check_verifier()
    import math_verify  # noqa: PLC0415  # an optional dependency

    # It would warn that there is no time limit, and of everything that it can't read.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    answer = extract_answer(output)
    if max(len(answer or ""), len(wanted)) > LONGEST:
        return False
    found = _parsed(output[-_TAIL:]) if answer is None else _parsed(rf"\boxed{{{answer}}}", answer)
    return bool(math_verify.verify(_parsed(rf"\boxed{{{wanted}}}", wanted), found, timeout_seconds=None))
