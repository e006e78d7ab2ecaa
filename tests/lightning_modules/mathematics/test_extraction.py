"""The final answer in a whole output: markers, wrappers, what is said after it, and where the model's own part ends."""

from __future__ import annotations

import time

import pytest

from gpart.lightning_modules.mathematics.answers import exact_match, extract_answer, verified_match
from gpart.lightning_modules.mathematics.extraction import own_part

# Outputs whose answer is 18, by the fault that they would show.
IS_18 = {
    "on the next line": [
        "The answer is:\n18",
        "The answer is:\n\n$$18$$",
        "The answer is\n\\[\n18\n\\]\nas wanted",
        "**Answer:**\n\n18 eggs\n",
        "####\n18",
    ],
    "a sentence after it": [
        "The answer is 18, because 9*2=18.",
        "The answer is 18 because 9*2=18.",
        "The answer is 18 eggs, which she sells.",
        "The answer is $18; this is what she makes.",
        "The answer is $18$. I hope it is correct.",
        "The answer is **18**. Let me check it.",
        "The answer is 18! She is glad.",
        "The answer is 18, not 17.",
        "#### 18. That is all.",
    ],
    "no number after a box": [
        "\\boxed{18}\nThe answer is correct.",
        "\\boxed{18}. Hence the answer is as above.",
        "\\boxed{18}. The answer is what was asked for. The answer is fine.",
        "\\boxed{17} or \\boxed{18}.\nThe answer is:",
        "#### 18\nThe answer is therefore found.",
        "The answer is 18.\nThe answer is:",
        "The answer is 18. I am sure that the answer is right.",
    ],
    "markers": [
        "The final answer is $18$",
        "Final Answer: The final answer is $18$. I hope it is correct.",
        "The correct answer is 18",
        "Answer: 18",
        "Final answer: 18.",
        "**Answer**: 18",
        "**The final answer is:** 18",
        "####18",
        "the answer is : 18",
        "The answer is therefore 18.",
        "Question: How many eggs?\nAnswer: 18",
    ],
    "wrappers": [
        *(f"{start}{{}}".format(wrapped) for start in ("The answer is: ", "#### ", "Answer: ") for wrapped in (
            "__18__", "`18`", '"18"', "'18'", "\u201c18\u201d", "*18*", "18;", "18,", "18!", "[18]", "(18)", "18<|endoftext|>",
            "18</s></s>", "**18**!", "18 eggs!", '"18."', "$18$,", "18<|im_end|>\n\\boxed{3}",
        )),
    ],
    "another question": [
        "The answer is: 18\nQuestion: And of ten?\nThe answer is: 7",
        "#### 18\n\n[Question] And of ten?\n[Answer] \\boxed{7}",
        "#### 18\n[Question 2] And of ten?\n#### 7",
        "#### 18\n**Question:** And of ten?\n#### 7",
        "#### 18\n### Instruction:\nWhat of ten?\n#### 7",
        "18 is the answer: 18\nQ: And of ten?\nA: the answer is 7",
        "#### 18\nProblem 2: And of ten?\n#### 7",
        " Question: Of nine?\nAnswer: 18\nQuestion: Of ten?\nAnswer: 7",
    ],
}  # fmt: skip


@pytest.mark.parametrize("output", [output for outputs in IS_18.values() for output in outputs])
def test_outputs_that_say_18(output: str) -> None:
    for match in (exact_match, verified_match):
        assert match(output, "#### 18")
        assert not match(output, "#### 7")
        assert not match(output.replace("18", "19"), "#### 18")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("He sells 9 for $2.\n#### 18", "18"),
        ("He sells 9 for $2.\n#### 18" + "\nThe answer is: 17", "17"),
        ("The answer is: 17\n#### 18", "18"),
        ("the answer is 5", "5"),
        ("THE ANSWER IS:5.", "5"),
        ("So the answer is: **$\\frac{1}{2}$**.\nI hope that helps.", r"\frac{1}{2}"),
        ("**The answer is:** 18", "18"),
        ("The answer is: \\(x+1\\).", "x+1"),
        ("The answer is: \\[x+1\\]", "x+1"),
        ("The answer is: $$7$$", "7"),
        ("The answer is: $18", "$18"),
        (r"The answer is: $\$18$", r"\$18"),
        (r"The answer is $\boxed{\frac{\sqrt{3}}{2}}$ metres.", r"\frac{\sqrt{3}}{2}"),
        (r"The answer is: 3 and \boxed{4}", "4"),
        ("#### 10:30 p.m.", "10:30 p.m"),
        ("#### 18 dollars", "18 dollars"),
        ("### 4\n#### 5\n##### 6", "5"),
        ("####18", "18"),
        ("#### ", None),
        ("#### 5\nThe answer is:\n6", "6"),
        ("#### 5\nThe answer is: **.**", "5"),
        ("The answers are 5", None),
        ("The answer isn't 5", None),
        ("Breathe answer is 5", None),
        ("I think that it is 18.", None),
        ("", None),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\fbox{4} units", "4"),
        (r"\boxed 5$ and so on", "5"),
        ("$\\boxed 5.\nThus", "5"),
        (r"\(\boxed 5\) it is", "5"),
        (r"\[\boxed 5\] it is", "5"),
        (r"The answer is: $5 or 6\$", r"$5 or 6\$"),
        ("#### $", "$"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{\left\{ x : x > 1 \right.}", r"\left\{ x : x > 1 \right."[:-1]),
        (r"\boxed{x^{2^{3}}}}", r"x^{2^{3}}"),
        ("\\boxed{1,\n2}", "1,\n2"),
        (r"\boxed{}", None),
        (r"\boxed{$ $}", None),
        (r"\boxed", None),
        (r"\boxed{5} and \boxed{6", None),
        (r"#### 5, or \boxed{6", None),
        (r"#### 5, or \boxedminus", r"5, or \boxedminus"),
    ],
)
def test_extraction(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is Evelyn.", "Evelyn"),
        ("\\boxed{18}\nThe answer is C.", "C"),  # a multiple choice
        (r"\boxed{18}. The answer is: \text{Evelyn}", r"\text{Evelyn}"),
        (r"\boxed{18}. The answer is $x$.", "x"),
        (r"\boxed{}. The answer is Evelyn.", "Evelyn"),
        ("The answer is Evelyn, or so I think. The answer is Tom.", "Tom"),
        ("The answer is clear: she has 18.", None),
        ("The answer isn't known. The answer is incorrect.", None),
        ("The answer is Mr. Smith. He came.", "Mr. Smith"),
        ("The answer is Mrs. Hu, because she came.", "Mrs. Hu"),
        ("The answer is 3 and 4", "3 and 4"),
        ("The answer is 3; or 4", "3; or 4"),
        ("The answer is 3, 4", "3, 4"),
        ("The answer is $(1, 2)$ and $(3, 4)$.", "$(1, 2)$ and $(3, 4)$"),
        (r"The answer is \text{10 a.m. Monday}. So it is.", r"\text{10 a.m. Monday}"),  # not within braces
        ("The answer is n!", "n!"),
        ("The answer is 3*5!", "3*5!"),
        ("The answer is $5!$.", "5!"),
        ("The answer is 5!!", "5!!"),
        (r"\boxed{5!}", "5!"),
        (r"The answer is 18\,", r"18\,"),
        ('The answer is "yes" or "no"', '"yes" or "no"'),
        ("The answer is f'", "f'"),
        ("The answer is: \n\n", None),
        ("The question: is the answer: yes", "yes"),
        ("#### 5 # 6", "5 # 6"),
        ("answerable: 5", None),
        ("The answer\nis 5", None),
    ],
)
def test_what_is_left_as_it_is(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("It is 18.\nQuestion: And ten?", "It is 18.\n"),
        ("Question: And ten?", "Question: And ten?"),  # the text begins with it
        ("  \n[Question] Ten?\nx\n[Question] Nine?", "[Question] Ten?\nx\n"),
        ("A good question: why?\nQuestions: none", "A good question: why?\nQuestions: none"),
        ("It is\nQuestionable: x", "It is\nQuestionable: x"),
        ("x Question: y", "x Question: y"),
        ("18<eos><eos>7", "18"),
        ("18<|other|>7", "18<|other|>7"),
        ("", ""),
    ],
)
def test_a_models_own_part_of_a_text(text: str, own: str) -> None:
    assert own_part(text) == own


LONG = [piece * (100_000 // len(piece)) for piece in (
    "\\boxed{", "{", "}", "\\{", "#", "#### ", "The answer is: ", "the ", "*", "$", "\\(", ".", " ", "\n", "\\", "1", "1,",
    "a ", "\\frac{", "\\text{", "(", "9^", "!", "answer: ", "the final ", "17. A", ", because ", "Question: ", "\nQuestion: ",
    "<eos>", "`", "_", "\"'", "; aa", " as", "a", "17! ", "####\n", "cm ", "\\overline{3}", "1 000 ", "½",
)]  # fmt: skip


@pytest.mark.parametrize("text", LONG, ids=lambda text: repr(text[:8]))
def test_long_nonsense_takes_no_time(text: str) -> None:
    start = time.process_time()
    for output in (text, "#### " + text, "\\boxed{" + text + "}", "The answer is: " + text):
        extract_answer(output)
        exact_match(output, "#### 18")
    assert time.process_time() - start < 2  # 0.1 s; a quadratic search takes minutes
    assert not verified_match(text, "#### 18")
    assert not verified_match("\\boxed{" + text + "}", "#### 18")


def test_blanks_at_a_place_where_a_sentence_could_end_take_no_time() -> None:
    start = time.process_time()
    for before in (
        "The answer is 18",
        "The answer is 18.",
        "The answer is 18,",
        "#### 18!",
        "\\boxed{1}\nThe answer is a;",
    ):
        extract_answer(before + " " * 99_000 + "x")
    assert time.process_time() - start < 2
