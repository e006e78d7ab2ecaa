r"""Compares final answers as the library math-verify judges, by one more rule: what a unit is.

Invariant: nothing that the library reads makes it compute for long; what could is no match.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from typing import Any

from gpart.errors import GPartError
from gpart.lightning_modules.mathematics.extraction import answer_of_reference, extract_answer, own_part
from gpart.lightning_modules.mathematics.latex_strings import LAST_TEXT, without_unit
from gpart.lightning_modules.mathematics.quantities import before_other_words, has_unit, number
from gpart.lightning_modules.mathematics.spelling import LONGEST, WRAPPERS, spelled, tidied
from gpart.lightning_modules.mathematics.units import TEXT


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


def _for_library(answer: str) -> str:
    r"""Takes words that are no known unit out of a last ``\text``, since the library drops that with what is in it."""
    texts = WRAPPERS.sub(r"\\text", answer)
    last = LAST_TEXT.search(texts)
    if last is None or not texts[: last.start()].strip() or without_unit(texts) != texts:
        return answer
    return texts[: last.start()] + TEXT.sub(r" \1 ", last[0])


def _parsed(text: str) -> list[Any]:
    """Returns math-verify's readings of a text; none if reading or comparing the text could take too long."""
    import math_verify  # noqa: PLC0415  # an optional dependency

    if _too_deep(text) or _EXPLOSIVE.search(text):
        return []
    readings: list[Any] = math_verify.parse(text, parsing_timeout=None)
    return [] if any(map(_costly, readings)) else readings


def _readings(answer: str) -> list[Any]:
    """Returns the library's readings of an answer, corrected by what a word behind a number means."""
    from sympy import Number, Rational  # noqa: PLC0415  # comes with math-verify, an optional dependency

    readings = _parsed(rf"\boxed{{{_for_library(answer)}}}")
    if (bare := before_other_words(answer)) is not None:
        exact = Rational(bare.numerator, bare.denominator)
        # Where the library multiplies by the letters of the words, a number before them stays 0 if it is 0.
        kept = [one for one in readings if bare and not (isinstance(one, Number) and (one - exact).is_zero)]
        readings = [one for one in kept if not isinstance(one, str)] + [spelled(tidied(answer))]
    if (value := number(answer) if has_unit(answer) else None) is not None:
        readings.append(Rational(value.numerator, value.denominator))
    return [] if any(map(_costly, readings)) else readings


def verified_match(output: str, reference: str) -> bool:
    r"""Returns whether the output's answer equals the reference's, as the library math-verify judges.

    This is the lenient figure; the table at ``exact_match`` compares the two. The output's answer is the one that
    ``extract_answer`` finds. Only if there is no marker, the library looks for an answer in the last 2,000 characters:
    it would prefer any ``answer is`` in the reasoning to a later ``####``, and it does not read LaTeX without dollar
    signs.

    One rule is added, and nothing else: a word behind a number is a unit only if it is a known one (``units``). A number
    with a known unit counts as that number too, also where the library takes the unit for a product of letters
    (``18 eggs``); and other words are not dropped, as the library drops some (``6 pm``) and all in ``\text`` (``5\text{
    million}``). So the spellings that ``exact_match`` alone knows, such as ``3e5``, ``1½`` and ``10{:}30``, stay unequal to
    ``300000`` here.

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
    wanted = answer_of_reference(reference)
    check_verifier()
    import math_verify  # noqa: PLC0415  # an optional dependency

    # It would warn that there is no time limit, and of everything that it can't read.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    answer = extract_answer(output)
    if max(len(answer or ""), len(wanted)) > LONGEST:
        return False
    found = _parsed(own_part(output)[-_TAIL:]) if answer is None else _readings(answer)
    return bool(math_verify.verify(_readings(wanted), found, timeout_seconds=None))
