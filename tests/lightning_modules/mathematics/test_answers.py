"""Final answers as GSM8K, MATH and MetaMathQA write them: found by the strict rule, and equal to a reference or not.

Each row of the table holds an answer as a model may write it, the reference and a near miss that must be unequal. Most
references are the data sets' own. Where math-verify judges otherwise, DIFFERENT says so.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from gpart.errors import GPartError
from gpart.lightning_modules.mathematics.answers import check_verifier, exact_match, extract_answer, verified_match
from gpart.lightning_modules.mathematics.latex_strings import number

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
UNREAD = {"6 - 5 i", "[0,∞)", "June 20", "6 and 8", "5 million", r"\text{Evelyn.}"}
# Near misses that math-verify takes for equal: it drops what follows the number.
TAKEN = {("5", r"5\text{ million}")}

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
]


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
        assert verified_match(output, truth) == ((miss, reference) in TAKEN)


@pytest.mark.parametrize(("answer", "reference", "exact", "verified"), PAIRS)
def test_pairs_on_which_the_two_may_differ(answer: str, reference: str, exact: bool, verified: bool) -> None:
    assert exact_match(boxed(answer), boxed(reference)) == exact
    assert verified_match(boxed(answer), boxed(reference)) == verified


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


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (JANET, "18"),
        (JANET + "\nThe answer is: 17", "17"),
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
        ("####18", None),
        ("#### ", None),
        ("#### 5\nThe answer is:\n6", None),
        ("#### 5\nThe answer is: **.**", None),
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


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,000,000", "1000000"), ("1,00", None), ("0,123", None), ("1234,567", None), ("1,000.25", "4001/4"), ("7.", "7"),
     ("1e5", None), ("--3", None), ("1/2/3", None), ("\\frac{1}{0}", None), ("5 a", None), ("5/x", None), ("5xy", None),
     ("10 p.m.", None), ("2 pi", None), ("3 or 4", None), ("5^2", None), ("٣", None), ("-1\\frac12", "-3/2"),
     ("$15/hour", "15"), ("5 sq. ft.", "5"), ("9" * 1001, None), ("", None), ("cm", None),
     ("10 pm", None), ("3 or more", None), ("5 and up", None), (r"15\mbox{ cm}^2", "15")],
)  # fmt: skip
def test_numbers(text: str, value: str | None) -> None:
    assert (None if (got := number(text)) is None else str(got)) == value


LONG = [piece * (100_000 // len(piece)) for piece in (
    "\\boxed{", "{", "}", "\\{", "#", "#### ", "The answer is: ", "the ", "*", "$", "\\(", ".", " ", "\n", "\\", "1", "1,",
    "a ", "\\frac{", "\\text{", "(", "9^", "!",
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


EXPLOSIVE = [
    "9^{9^{9^9}}", "9^9^9^9", "9**9**9**9", "10^{10^{10}}", "[9^{9^{9^9}}, 2]", "[1, 9^{9\\cdot 9^9}]",
    "\\gcd(9^{9^{9^9}}, 3)", "(9^9)^{(9^9)}", "2^{10000000000}", "100000000!", "9!!!!!!", "(9^9)!",
    "\\binom{10000000}{5000000}", "(x+1)^{999}", "(x+y+1)^{99}", "\\sum_{i=1}^{10^9} i^i", "\\int_0^1 x^x dx",
    "\\frac{1}{9^{9^9}}", "\\begin{pmatrix}2&1\\\\1&1\\end{pmatrix}^{99999}", "(" * 400 + "1" + ")" * 400,
    "1+" * 480 + "1", "x" + "!" * 900, "\\sqrt{" * 100 + "2" + "}" * 100, "1" * 990, "[1, 99999!]",
    "[9^9^9^9, 2]", "\\gcd(9^9^9^9, 3)", "\\gcd(2^{99999999999}, 3)", "\\gcd(100000000!, 3)", "\\gcd(9!!!!!, 3)",
    "{100000000 \\choose 50000000}", "+".join(f"\\sin {i}x" for i in range(2, 90)), "\\int_0^1 \\sin(x^3) \\cos(x^2) e^x dx",
    "\\sum_{n=1}^{\\infty} \\frac{\\sin n}{n^2+n+1}",
]  # fmt: skip


@pytest.mark.parametrize("answer", EXPLOSIVE, ids=lambda text: text[:20])
def test_answers_that_would_explode_are_no_match_within_two_seconds(answer: str) -> None:
    verified_match("#### 1", "#### 1")  # the imports
    for output in (boxed(answer), f"It is ${answer}$", answer):
        start = time.process_time()
        assert not verified_match(output, r"\boxed{x^2+\sqrt{3}}")
        assert time.process_time() - start < 2
    start = time.process_time()
    verified_match(boxed(answer), boxed(answer))
    assert time.process_time() - start < 2


def test_large_but_harmless_powers_are_compared() -> None:
    for answer in ("2^{100}", "7^{1000}", "e^{x^2}", "20!", r"\binom{10}{3}", "x^{2n+1}", r"(\sqrt{2}+1)^4"):
        assert verified_match(boxed(answer), boxed(answer))
    assert verified_match(r"Since $2^{2^3} = 256$ and so on, it is \boxed{256}.", "#### 256")
    assert verified_match(boxed("120"), boxed(r"\binom{10}{3}"))


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


@pytest.mark.slow  # a process of its own
def test_the_library_is_imported_late_and_is_silent() -> None:
    code = (
        "import sys, threading, signal, logging\n"
        "from gpart.lightning_modules.mathematics.answers import exact_match, verified_match\n"
        "assert exact_match('#### 18', '#### 18') and 'math_verify' not in sys.modules\n"
        "before = logging.root.level, logging.root.disabled, logging.root.manager.disable\n"
        "got = []\n"
        "run = threading.Thread(target=lambda: got.append(verified_match('It is 1/2', '#### 0.5')))\n"
        "run.start(); run.join()\n"  # a signal's alarm would raise here
        "assert got == [True] and verified_match(r'\\boxed{)}', '#### 1') is False\n"
        "assert before == (logging.root.level, logging.root.disabled, logging.root.manager.disable)\n"
        "assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "imeout" not in done.stdout + done.stderr


def test_without_the_library_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_verifier()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    for refused in (check_verifier, lambda: verified_match("#### 1", "#### 1")):
        with pytest.raises(GPartError, match=r"pip install 'gpart-lightning\[math\]'.*math_verify"):
            refused()


def test_what_the_parser_would_compute_never_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("math_verify.parse", lambda text, parsing_timeout: seen.append(text) or [])
    for answer in ("9^9^9", "9**-9**9", "9^9!", "2^{999999}", "2^(-1000000)", "x!!!!", "9!!", "(" * 26 + ")" * 26):
        verified_match(boxed(answer), "#### 1")
    assert set(seen) == {r"\boxed{1}"}
    verified_match(boxed("2^{99999}"), "#### 1")
    assert r"\boxed{2^{99999}}" in seen
