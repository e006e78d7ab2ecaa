r"""Finds the final answers of mathematical solutions in their texts.

It reads the forms of GSM8K (``#### 18``), MetaMathQA (``The answer is: 18``), MATH (``\boxed{18}``), Minerva and lm-eval
(``The final answer is $18$. I hope it is correct.``), and ``Answer: 18``.
"""

from __future__ import annotations

import re

from gpart.errors import GPartError

# Five hash signs are a heading of another level, \boxedfoo is another command, and "the answer is correct" tells none.
# An answer that is "said" in words may be a mere remark; a box or #### is no remark.
_MARKER = re.compile(
    r"(?<!#)####(?!#)"
    r"|(?P<said>\bthe[ \t]+(?:final[ \t]+|correct[ \t]+)?answer[ \t]+is\b(?![ \t]+(?:(?:in)?correct|right|wrong|clear)\b)"
    r"(?:[ \t]+(?:therefore|thus|then|hence)\b)?(?:\*\*|__)?[ \t]*:?"
    r"|\banswer(?:\*\*|__)?[ \t]*:)"
    r"|\\(?:boxed|fbox)(?![A-Za-z])[ \t]*",
    re.IGNORECASE,
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_END = re.compile(r"\$|\\\)|\\\]|\n")  # Hendrycks et al. read \boxed 5$ up to the dollar sign

# What a model writes after its answer: the token that ends a text, or the next question of a prompt with examples.
_END_TOKEN = re.compile(r"<\|(?:endoftext|end_of_text|eot_id|im_end|end)\|>|</s>|<eos>|<end_of_turn>")
_QUESTION = re.compile(
    r"^[ \t>*#_]{0,8}(?:\[Question\b"
    r"|(?:Question|Problem|Q|Instruction)(?:[ \t]{1,3}[0-9]{1,4})?(?:\*\*|__)?[ \t]{0,3}:)",
    re.MULTILINE,
)
# Where an answer ends within its line: before another sentence, or before a reason.
_SENTENCE = re.compile(
    r"(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?](?=\s+[A-Z])"
    r"|[,;]?(?<!\s)\s+(?:because|since|as|so|which|given|hence|therefore|meaning)\b"
    r"|[,;](?<!\s)\s+(?:for|but|not|giving|that is|i\.e\.)"
    r"|;(?<!\s)\s+(?!and\b|or\b)(?=[A-Za-z]{2})"
)
# An exclamation mark that is none of a factorial: after a plain number, a word or a closing sign.
_EXCLAIMED = re.compile(r"(?:^\s*[-+]?\\?\$?[0-9][0-9,]*(?:\.[0-9]+)?|[A-Za-z]{2}|\*\*|__|[$\"`]|\\[)\]])!\s*\Z")
_PAIRS = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "*": "*"}
_DOLLAR = re.compile(r"(?<!\\)\$")
_OPENING = ("**", "__", r"\(", r"\[")
_CLOSING = ("**", "__", r"\)", r"\]")
_FORMULA = re.compile(r"[0-9$\\]")
_LONGER_WORD = re.compile(r"[A-Za-z]{2}")  # a single letter may be the answer to a multiple choice


def own_part(text: str) -> str:
    r"""Returns a solution without what a model wrote beyond it: from an end token or the next question on.

    A question ends it if it begins a line, but not the text: ``Question:``, ``[Question]``, ``Problem:``, ``Q:`` or
    ``Instruction:``.

    Example:
        >>> own_part("It is 18.\nQuestion: And twice as many?\nThe answer is: 36")
        'It is 18.\n'
    """
    text = text.lstrip()
    for end in (_END_TOKEN, _QUESTION):
        if found := end.search(text, 1):
            text = text[: found.start()]
    return text


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


def _paired(text: str, start: int, end: int) -> bool:
    """Returns whether a text stands between two dollar signs or quotation marks that belong together."""
    if text[start] == text[end - 1] == "$":
        return text[end - 2] != "\\" and (text[start + 1] == "$" or not _DOLLAR.search(text, start + 1, end - 1))
    closing = _PAIRS.get(text[start], "")
    return closing == text[end - 1] and text.find(closing, start + 1, end - 1) < 0


def _stripped(text: str) -> str:
    start, end = 0, len(text)
    while start < end:
        first, last = text[start], text[end - 1]
        if first.isspace() or first == "`":
            start += 1
        elif last.isspace() or last == "`" or (last in ".,;" and text[max(start, end - 2)] != "\\"):  # \, is a blank
            end -= 1
        elif text.startswith(_OPENING, start, end):
            start += 2
        elif text.endswith(_CLOSING, start, end):
            end -= 2
        elif end - start > 1 and _paired(text, start, end):
            start, end = start + 1, end - 1
        else:
            break
    return text[start:end]


def _first_sentence(line: str) -> str:
    """Returns a line up to its next sentence or the reason that it gives, if that is not within braces."""
    depth = done = 0
    for end in _SENTENCE.finditer(line):
        depth += line.count("{", done, end.start()) - line.count("}", done, end.start())
        done = end.start()
        if depth == 0:
            line = line[: end.end() if end[0] == "!" else end.start()]
            break
    return line.rstrip()[:-1] if _EXCLAIMED.search(line) else line


def _said(text: str) -> str:
    """Returns the answer on the first line that has one."""
    start = 0
    while start <= len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if answer := _stripped(_first_sentence(text[start:end])):
            return answer
        start = end + 1
    return ""


def _mere_words(answer: str) -> bool:
    return not _FORMULA.search(answer) and bool(_LONGER_WORD.search(answer))


def extract_answer(text: str) -> str | None:
    r"""Returns the final answer of a solution: what follows the last marker in the text. It returns None without one.

    The markers, in upper or lower case, are ``####``; ``The answer is``, ``The final answer is`` and ``The correct answer
    is``, with or without a colon; ``Answer:``; and ``\boxed`` or ``\fbox``. A box holds the answer in balanced braces
    (``\boxed 5`` reaches to a dollar sign or the end of the line). After the others it is on the rest of the line, or else
    on the next line that is not empty, and reaches to the next sentence (``18. I hope it is correct.``) or reason (``18,
    because 9*2=18``). Of these, an answer in mere words does not count where a box or ``####`` stands before it
    (``\boxed{18}. Hence the answer is as above.``). The text ends before a next question; see ``own_part``.

    Blanks, full stops, commas and semicolons at the end are removed, and so are surrounding dollar signs, ``\( \)``,
    ``\[ \]``, ``**``, ``__``, backticks and quotation marks. Outside of boxes and dollar signs, an exclamation mark at the
    end of a lone number is one, and no factorial: ``The answer is 18!`` is 18, and ``\boxed{5!}`` stays. An empty answer
    counts as none, and so does a last box that does not end.

    Example:
        >>> extract_answer("She makes 9 * 2 = $18 a day.\n#### 18\nThe answer is: 18")
        '18'
        >>> extract_answer(r"Hence $x = \boxed{\frac{1}{2}}$, as $2x = \boxed{1}$ has the answer $\boxed{\frac12}$.")
        '\\frac12'
        >>> extract_answer("I think that it is 18.") is None
        True
    """
    text = own_part(text)
    markers = list(_MARKER.finditer(text))
    words, end = None, len(text)
    for marker in reversed(markers):
        if marker[0].startswith("\\"):
            return _stripped(_box(text, marker.end()) or "") or words
        answer = _said(text[marker.end() : end])
        if not marker["said"] or (words is None and answer and not _mere_words(answer)):
            return answer or words
        words, end = words or answer or None, marker.start()
    return words


def answer_of_reference(reference: str) -> str:
    """Returns the final answer of a solution in a data set.

    Raises:
        GPartError: if it has none.
    """
    answer = extract_answer(reference)
    if answer is None:
        raise GPartError(
            "a reference must hold its final answer after '#### ' or 'The answer is:', or in \\boxed{...}; "
            f"got {reference!r}"
        )
    return answer
