r"""Compares the final answers of mathematical solutions with the references'."""

from __future__ import annotations

from gpart.lightning_modules.mathematics.extraction import answer_of_reference, extract_answer
from gpart.lightning_modules.mathematics.latex_strings import same
from gpart.lightning_modules.mathematics.verified import check_verifier, verified_match

__all__ = ["check_verifier", "exact_match", "extract_answer", "verified_match"]


def exact_match(output: str, reference: str) -> bool:
    r"""Returns whether both texts have a final answer, and these are equal.

    Answers are compared as exact numbers if both are numbers (``quantities``), else as strings after MATH's normalisation
    (``latex_strings``). This is the strict figure, and the one to compare with the paper's; ``verified_match`` is the
    lenient one. Report both by their names. Their conventions, with what is right for the benchmarks:

    ============================================= ===== ======== ===================================================
    answers                                       exact verified right
    ============================================= ===== ======== ===================================================
    ``50%``, ``50``                               yes   yes      yes
    ``50%``, ``0.5``                              no    **yes**  no: GSM8K's reference is 50
    ``5\text{ cm}^2``, ``5``                      yes   yes      yes
    ``10 cents``, ``10 dollars``                  yes   yes      units are ignored by custom
    ``20 fewer apples``, ``20``                   no    no       no: only a known unit is ignored
    ``2 thirds``, ``\frac{2}{3}``                 yes   yes      yes
    ``(C)``, ``C``; ``\textbf{(A)}``, ``A``       yes   yes      yes
    ``1, 2``, ``2, 1``                            **no** yes     yes where it is a set of solutions, which no text says
    ``\{1,2\}``, ``(1,2)``                        no    **yes**  no
    ``(1,2)``, ``[1,2]``; ``(1,2]``, ``(1,2)``    no    no       no
    ``\sqrt{12}``, ``2\sqrt3``; ``2^{10}``,       **no** yes     yes, but it takes algebra
    ``1024``; ``(x+1)(x-1)``, ``x^2-1``
    ``11_2``, ``11_3``; ``ABDC``, ``ABCD``;       no    **yes**  no: the library drops bases and the order of letters,
    ``3.14159265``, ``\pi``; ``3:4``,                            and compares six decimals
    ``\frac34``; ``0.3333333``, ``\frac13``
    ``18.0``, ``018``, ``18``; ``1\frac45``,      yes   yes      yes
    ``\frac95``; ``1,234,567``, ``1234567``
    ============================================= ===== ======== ===================================================

    What is set in bold is wrong for the benchmarks, and stays: the strict figure has no algebra, and the lenient one is
    the library's judgement.

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
    wanted = answer_of_reference(reference)
    answer = extract_answer(output)
    return answer is not None and same(answer, wanted)
