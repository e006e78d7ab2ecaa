"""Final answers as GSM8K, MATH and MetaMathQA write them: found by the strict rule, and equal to a reference or not.

Each row of the table holds an answer as a model may write it, the reference and a near miss that must be unequal. Most
references are the data sets' own. Where math-verify judges otherwise, DIFFERENT says so.
"""

from __future__ import annotations

import random

import pytest

from gpart.errors import GPartError
from gpart.lightning_modules.mathematics.answers import exact_match, extract_answer, verified_match

# written by a model | the reference | a near miss
GSM8K = r"""
18 | 18 | 180
$18 | 18 | 17
\$18.00 | 18 | 18.01
18 dollars | 18 | 81
$18 per day | 18 | 1.8
70,000 | 70000 | 700,00
2125 | 2,125 | 2,1250
114200.0 | 114,200 | 114,200.5
1,450,000 | 1450000 | 1,450,00
\$109{,}200{,}000 | 109,200,000 | 109,200
16,\!800,\!000 | 16,800,000 | 16,800,001
5\,600 | 5,600 | 56,00
−10 | -10 | 10
-3 | -3 | 3
- 47 | -47 | 47
-$12 | -12 | 12
+5 | 5 | -5
16.0 | 16 | 1,6
.5 | 0.5 | 5
1/2 | 0.5 | 1/5
50\% | 50 | 5\%
25% | 25 | 75%
12 percent | 12 | 1.2
8 eggs | 8 | 8 - 1
60 miles per hour | 60 | 6 miles per hour
64 mph | 64 | 46 mph
366 downloads | 366 | 336 downloads
5 cm^2 | 5 | 25
20cm | 20 | 2cm
460 | 460 | 640
3/4 teaspoon | 3/4 | 4/3 teaspoon
2 1/2 hours | 2.5 | 21/2 hours
$1,000 | 1000 | 1,0000
0 | 0 | 1
540 meters. | 540 | 54 meters.
"""  # noqa: RUF001  (models write the minus sign)
MATH = r"""
\frac{1}{9} | \dfrac{1}{9} | \dfrac{9}{1}
\frac12 | \frac{1}{2} | \frac{2}{1}
0.375 | \frac{3}{8} | \frac{8}{3}
-35/9 | -\frac{35}{9} | \frac{35}{9}
\frac{-35}{9} | -\frac{35}{9} | \frac{35}{-8}
\frac{28}{12} | \tfrac73 | \frac{3}{7}
1\frac{4}{5} | \frac{9}{5} | \frac{14}{5}
\frac 59 | \frac{5}{9} | \frac{9}{5}
\frac{243}{625} | \frac{243}{625} | \frac{243}{626}
3.14 | 3.14 | \frac{22}{7}
48 | 48^\circ | 84^\circ
90^{\circ} | 90^\circ | 9^\circ
72 degrees | 72 \text{ degrees} | 27 \text{ degrees}
120° | 120 | 12°
\frac{270}{7} | \frac{270}7\text{ degrees} | \frac{27}7\text{ degrees}
100 | 100\text{ square units} | 10\text{ square units}
15 | 15\mbox{ cm}^2 | 16\mbox{ cm}^2
10\,\mathrm{m/s} | 10 | 1\,\mathrm{m/s}
32348 | \$32,\!348 | \$32,\!438
18.9 | \$18.90 | \$18.09
10,080 | 10,\!080 | 10,\!800
\text{4:30 p.m.} | \text{4:30 p.m.} | \text{4:30 a.m.}
10:30 | 10:30 | 10:03
3:5 | 3:5 | 5:3
3 : 5 | 3:5 | 3:4
4a - 2 | 4a-2 | 4a+2
-13x+3 | -13x + 3 | -13x-3
x^{3}+3x-6 | x^3+3x-6 | x^3+3x+6
p-q | p - q | q - p
3R^2 | 3R^2 | 3R^3
5x | 5x | 5
2\pi | 2\pi | 2
6 - 5 i | 6 - 5i | 6 + 5i
3\sqrt{3} | 3\sqrt3 | 3\sqrt{2}
\sqrt{101}-\sqrt{2}+9 | \sqrt{101} - \sqrt{2} + 9 | \sqrt{101} + \sqrt{2} + 9
2+\sqrt3 | 2 + \sqrt{3} | 2 - \sqrt{3}
\frac{\sqrt3}3 | \frac{\sqrt{3}}{3} | \frac{\sqrt{3}}{2}
6 \times 10^{5} | 6 \cdot 10^5 | 6 \cdot 10^6
x = 5 | 5 | x = 6
x=5 | x=5 | x=-5
2x + 3 | y = 2x + 3 | y = 2x - 3
4210_5 | 4210_{5} | 4120_5
\left(3, \frac{\pi}{2}\right) | \left( 3, \frac{\pi}{2} \right) | \left( 3, \frac{\pi}{3} \right)
(6, 31, -1) | (6,31,-1) | (6,-1,31)
\left(1.5, -13\right) | \left(\frac{3}{2}, -13 \right) | \left(\frac{3}{2}, 13 \right)
(1, 2) | (1,2) | (2,1)
[0, 1) | [0,1) | (0,1)
\left(-\infty, 2\right) \cup (3,\infty) | (-\infty, 2) \cup (3, \infty) | (-\infty, 2] \cup (3, \infty)
[0,∞) | [0,\infty) | (0,\infty)
x \in [-2, 7] | x \in [-2,7] | x \in [-2,7)
1, -2 | 1,-2 | 1,2
3,5,7 | 3, 5, 7 | 3, 5, 8
\left\{ 1\pm\sqrt{5}, -2 \right\} | \{1\pm\sqrt{5},-2\} | \{1\pm\sqrt{5},2\}
\{ 1, 2 \} | \{1,2\} | \{1,3\}
1\pm\sqrt{19} | 1 \pm \sqrt{19} | 1 \pm \sqrt{17}
\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix} | \begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix} | \begin{pmatrix} -1/3 \\ 2/3 \\ 4/3 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 12 \end{pmatrix}
\begin{pmatrix}2&1\\0&-1\end{pmatrix} | \begin{pmatrix} 2 & 1 \\ 0 & -1 \end{pmatrix} | \begin{pmatrix} 2 & 0 \\ 1 & -1 \end{pmatrix}
Evelyn | \text{Evelyn} | \text{Angela}
\textbf{Evelyn} | \text{Evelyn} | Evelin
\mathrm{even} | \text{even} | \text{odd}
\text{(C)} | (C) | (D)
C | \text{C} | \text{D}
June 20 | \text{June 20} | \text{June 21}
6 and 8 | \text{6 and 8} | \text{6 and 9}
\text{Evelyn.} | \text{Evelyn} | \text{Eve.}
3\sqrt{13}\text{ cm} | 3\sqrt{13} | 2\sqrt{13}\text{ cm}
x \leq 3 | x \le 3 | x \ge 3
x \geq 2 | x \ge 2 | x > 2
\frac xy | \frac{x}{y} | \frac{y}{x}
1 2 | 1\ 2 | 12
5 million | 5\text{ million} | 5
\\frac{3}{56} | \frac{3}{56} | \frac{56}{3}
"""
TABLE = [
    tuple(cell.strip() for cell in row.split(" | ")) for block in (GSM8K, MATH) for row in block.strip().split("\n")
]

# Rows of which exact_match holds answer and reference for equal and math-verify does not: it takes the words or signs
# for products of letters, or does not know them.
UNREAD = {"6 - 5 i", "[0,∞)", "June 20", "6 and 8", r"\text{Evelyn.}", r"5\,600"}

# More pairs: answer, reference, what exact_match says, what math-verify says.
PAIRS = [
    (r"50\%", "0.5", False, True),  # GSM8K and MATH drop the sign; math-verify takes it for 1/100 as well
    ("50%", r"\frac{1}{2}", False, True),
    ("3/5", "3:5", False, True),
    ("52_9", "52_8", False, True),  # the base is lost
    ("ABDC", "ABCD", False, True),  # a product of letters
    ("0.333333", r"\frac{1}{3}", False, True),  # six decimals are compared
    (r"\sqrt{8}", r"2\sqrt{2}", False, True),
    (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}", False, True),
    ("(x-1)(x+1)", "x^2-1", False, True),
    ("3+2x", "2x+3", False, True),
    (r"\{2,1\}", r"\{1,2\}", False, True),
    ("2,1", "1,2", False, True),
    (r"2^{10}", "1024", False, True),
    (r"\frac{6}{4}", "1.5", True, True),
    ("(0.5, 3)", r"\left(\frac12, 3\right)", True, True),
    ("1,0", "1,000", False, False),
    ("{1,2}", r"\{1,2\}", True, True),
    (r"\text{ m}^2", r"\text{ cm}^2", False, False),
    ("1/0", "0", False, False),
    ("18 because 2 * 9 = 18", "18", False, True),  # the last equation's value
    ("evelyn", r"\text{Evelyn}", False, True),  # letters are compared without case
    ("", "18", False, False),
    # The audit's table of conventions; what it calls a fault is elsewhere.
    ("50%", "0.5", False, True),
    ("50%", "50", True, True),
    ("50 %", "50", True, True),
    (r"5\text{ cm}^2", "5", True, True),
    ("10 cents", "10 dollars", True, True),
    ("(C)", "C", True, True),
    (r"\textbf{(A)}", "A", True, True),
    ("(C)", "D", False, False),
    ("1, 2", "2, 1", False, True),
    ("(1,2)", "[1,2]", False, False),
    ("(1,2]", "(1,2)", False, False),
    (r"\{1,2\}", "(1,2)", False, True),
    (r"\sqrt{12}", r"2\sqrt3", False, True),
    ("(x+1)(x-1)", "x^2-1", False, True),
    ("11_2", "11_3", False, True),
    ("3.14159265", r"\pi", False, True),
    ("3:4", r"\frac34", False, True),
    ("0.3333333", r"\frac13", False, True),
    ("18.0", "18", True, True),
    ("018", "18", True, True),
    (r"1\frac45", r"\frac95", True, True),
    ("1,234,567", "1234567", True, True),
]
# Spellings that exact_match knows. math-verify does not read them, and it gets no other rule than that of units.
SPELLINGS = [
    (r"0.\overline{3}", r"\frac13", r"\frac{3}{10}"),
    (r"0.1\overline{6}", r"\frac16", "0.16"),
    (r"12.\bar{45}", r"\frac{137}{11}", "12.45"),
    (r".\overline{142857}", r"\frac{1}{7}", "0.142857"),
    (r"-0.\overline{9}", "-1", "1"),
    ("3e5", "300000", "3e4"),
    ("2.5e-3", "0.0025", "2.5"),
    ("1½", r"\frac32", r"\frac12"),
    ("¾", "0.75", "0.34"),
    ("3\u20444", "0.75", "34"),
    ("10{:}30", "10:30", "10:31"),
    ("9{:}05", "9:05", "9:5"),
    (r"\emptyset", r"\varnothing", "0"),
    ("∅", r"\{ \}", r"\{0\}"),
    (r"\infty", r"\text{infinity}", r"-\infty"),
    ("Infinity", r"\infty", "finity"),
    (r"101_{\text{two}}", "101_2", "101_3"),
    (r"1A_\text{sixteen}", "1A_{16}", "1A_6"),
    ("1 234 567", "1234567", "1 234 56"),
    (r"12\ 500", "12,500", "12 50"),
]
MATRICES = [
    (r"\begin{pmatrix}0.5\\-1\end{pmatrix}", r"\begin{pmatrix}\frac12\\-1\end{pmatrix}"),
    (r"\begin{pmatrix}1/2&3\end{pmatrix}", r"\begin{pmatrix} \frac{1}{2} & 3 \end{pmatrix}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    (r"\begin{bmatrix} 0.25 \\ x \end{bmatrix}", r"\begin{pmatrix} \tfrac14 \\ x \end{pmatrix}"),
]
LETTER_UNITS = [("2 m", "2m"), ("7 g", "7g"), ("4 s", r"4\text{s}")]


def boxed(answer: str) -> str:
    return rf"So it is $\boxed{{{answer}}}$, as was to be shown."


def test_the_table_is_as_large_as_it_is_said_to_be() -> None:
    assert len(TABLE) >= 100
    assert all(len(row) == 3 for row in TABLE)


@pytest.mark.parametrize(("answer", "reference", "miss"), TABLE)
@pytest.mark.parametrize("form", ["It follows.\n#### {}", "The answer is: {}", boxed("{}").replace("{{}}", "{{{}}}")])
def test_the_same_answer_is_equal_and_a_near_miss_is_not(answer: str, reference: str, miss: str, form: str) -> None:
    truth = boxed(reference)
    for text in (answer, reference):
        assert exact_match(form.format(text), truth)
        assert exact_match(truth, form.format(text))
    assert not exact_match(form.format(miss), truth)
    assert not exact_match(truth, form.format(miss))


@pytest.mark.parametrize(("answer", "reference", "miss"), TABLE)
def test_math_verify_agrees_but_where_it_is_said(answer: str, reference: str, miss: str) -> None:
    truth = boxed(reference)
    assert verified_match(truth, truth)
    for output in (boxed(answer), f"The answer is: {answer}"):
        assert verified_match(output, truth) == (answer not in UNREAD)
    for output in (boxed(miss), f"The answer is: {miss}"):
        assert not verified_match(output, truth)


@pytest.mark.parametrize(("answer", "reference", "exact", "verified"), PAIRS)
def test_pairs_on_which_the_two_may_differ(answer: str, reference: str, exact: bool, verified: bool) -> None:
    assert exact_match(boxed(answer), boxed(reference)) == exact
    assert verified_match(boxed(answer), boxed(reference)) == verified


@pytest.mark.parametrize(("answer", "reference", "miss"), SPELLINGS)
def test_spellings_that_math_verify_does_not_know(answer: str, reference: str, miss: str) -> None:
    assert exact_match(boxed(answer), boxed(reference))
    assert exact_match(boxed(reference), boxed(answer))
    assert not exact_match(boxed(miss), boxed(reference))
    assert not exact_match(boxed(miss), boxed(answer))
    assert not verified_match(boxed(answer), boxed(reference))


@pytest.mark.parametrize(("one", "two"), MATRICES)
def test_the_numbers_in_a_matrix_are_exact_and_its_brackets_do_not_count(one: str, two: str) -> None:
    for match in (exact_match, verified_match):
        assert match(boxed(one), boxed(two))
        assert match(boxed(two), boxed(one))
    for other in (one.replace("pmatrix", "vmatrix").replace("bmatrix", "vmatrix"), one.replace("1", "7"), one + "1"):
        assert not exact_match(boxed(other), boxed(two)) or other == one
    assert not exact_match(boxed(one.replace("\\\\", "&")), boxed(two)) or "\\\\" not in one


@pytest.mark.parametrize(("free", "glued"), LETTER_UNITS)
def test_a_letter_after_a_blank_is_a_unit_and_is_also_what_it_is_without_the_blank(free: str, glued: str) -> None:
    assert exact_match(boxed(free), boxed(free[0]))
    assert exact_match(boxed(free), boxed(glued))
    assert exact_match(boxed(glued), boxed(free))
    assert not exact_match(boxed(free), boxed(glued.replace(free[0], "9")))


def test_every_answer_is_equal_to_itself() -> None:
    random.seed(0)
    pieces = [
        "1",
        "0",
        "18",
        ".",
        ",",
        " ",
        "-",
        "x",
        "eggs",
        "thirds",
        "m",
        "/",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "\\",
        "$",
        "%",
        "!",
    ]
    pieces += [
        "\\frac",
        "\\text{ cm}",
        "^2",
        "_",
        "\\overline{3}",
        "e5",
        "½",
        "&",
        "\\begin{pmatrix}",
        "\\{",
        "**",
        "`",
        '"',
        "#",
    ]
    pieces += [
        "\n",
        "answer: ",
        "The answer is ",
        "#### ",
        "\\boxed{",
        "Question:",
        "<|im_end|>",
        "because ",
        "infinity",
        "\u2212",
        "٣",
    ]
    answered = 0
    for _ in range(4000):
        text = "".join(random.choices(pieces, k=random.randint(1, 12)))
        for output in (f"#### {text}", f"The answer is: {text}", boxed(text), text):
            if extract_answer(output) is not None:
                answered += 1
                assert exact_match(output, output), output
    assert answered > 8000


JANET = (
    "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\n"
    "She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer\u2019s market.\n#### 18"
)
CAMERON = (  # math-verify alone takes the 12 for the answer, by the word "answered"
    "For all four tours, Cameron answered 12 + 22 + 20 + 14 = <<12+22+20+14=68>>68 questions.\n#### 68"
)
REFERENCES = [
    JANET,
    CAMERON,
    JANET + "\nThe answer is: 18",
    "He pays 8 * 3 = $<<8*3=24>>24.\n#### 2,125",
    "It fell to -3 degrees.\n#### -3",
    "#### 1,450,000",
    r"Therefore, $\frac{2}{5}$ divided by 3 is $\boxed{\frac{2}{15}}$." + "\nThe answer is: \\frac{2}{15}",
    r"Dividing, $x= \boxed{-4}$.",
    r"We get \[93 \div 31 = \boxed{3}.\]",
    r"Hence $\boxed 5$.",
]


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_reference_matches_itself(reference: str) -> None:
    assert exact_match(reference, reference)
    assert verified_match(reference, reference)


def test_a_reference_without_an_answer_is_refused_and_an_output_without_one_is_wrong() -> None:
    for match in (exact_match, verified_match):
        with pytest.raises(GPartError, match=r"a reference must hold its final answer .*got 'It is 18\.'"):
            match("#### 18", "It is 18.")
        assert match("No idea.", "#### 18") is False
        assert match("", "#### 18") is False


def test_math_verify_finds_an_answer_without_a_marker() -> None:
    assert verified_match(r"Adding both, $x = \frac{1}{2}$.", r"\boxed{0.5}")
    assert verified_match("So she has 18 eggs left", JANET)
    assert not verified_match("So she has 17 eggs left", JANET)
    assert not exact_match("So she has 18 eggs left", JANET)
    assert not verified_match("She has 18 eggs." + " And so on." * 400, JANET)  # the end alone is read
    assert verified_match("So she has 18 eggs.\nQuestion: And Tom?\nHe has 7.", JANET)  # and not the next question's
    assert not verified_match("So she has 7 eggs.\nQuestion: And Tom?\nHe has 18.", JANET)


def test_no_output_raises() -> None:
    for output in (
        "\\boxed{\\frac}",
        "\\boxed{^}",
        "\\boxed{\x00}",
        "#### \ud800",
        "\\boxed{\\begin{pmatrix}}",
        "$$",
        "%",
        "\\",
    ):
        assert not exact_match(output, "#### 18")
        assert not verified_match(output, "#### 18")
