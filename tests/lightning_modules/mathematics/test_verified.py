"""math-verify is imported late, is silent, and never computes for long, whatever an output holds."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from gpart.errors import GPartError
from gpart.lightning_modules.mathematics.answers import check_verifier, verified_match


def boxed(answer: str) -> str:
    return rf"So it is $\boxed{{{answer}}}$, as was to be shown."


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
def test_answers_that_would_explode_are_no_match_within_seconds(answer: str) -> None:
    verified_match("#### 1", "#### 1")  # the imports
    for output in (boxed(answer), f"It is ${answer}$", answer):
        start = time.process_time()
        assert not verified_match(output, r"\boxed{x^2+\sqrt{3}}")
        assert time.process_time() - start < 4  # the sum of sines takes 2.1 s on a busy core
    start = time.process_time()
    verified_match(boxed(answer), boxed(answer))
    assert time.process_time() - start < 4  # the sum of sines takes 2.1 s on a busy core


def test_large_but_harmless_powers_are_compared() -> None:
    for answer in ("2^{100}", "7^{1000}", "e^{x^2}", "20!", r"\binom{10}{3}", "x^{2n+1}", r"(\sqrt{2}+1)^4"):
        assert verified_match(boxed(answer), boxed(answer))
    assert verified_match(r"Since $2^{2^3} = 256$ and so on, it is \boxed{256}.", "#### 256")
    assert verified_match(boxed("120"), boxed(r"\binom{10}{3}"))


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


def test_nothing_times_letters_is_not_nothing() -> None:
    """The library reads the words as a product of letters, which is 0 where the number is."""
    assert not verified_match("#### 0 fewer", "#### 0")
    assert not verified_match("#### 0", "#### 0 xy")
    assert verified_match("#### 0 fewer", "#### 0 fewer")
    assert verified_match("#### 0 apples", "#### 0")
