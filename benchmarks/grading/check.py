"""Grades every reference of GSM8K, or of another data set, against itself and against ten corruptions of it.

    python benchmarks/grading/check.py ../shared/data/gsm8k --out benchmarks/grading/gsm8k.json --verified test

The folder holds parquet files with a column of worked answers. What is equal: the reference itself, and the same number in
another form, with a unit, or followed by another question. What is unequal: each corruption. ``exact_match`` judges all of
them; ``verified_match``, which takes some 15 milliseconds each, all references against themselves, and the other forms of
the files whose names begin with the word given.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import re
import time
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet

from gpart.lightning_modules.mathematics.answers import exact_match, extract_answer, verified_match
from gpart.lightning_modules.mathematics.quantities import number
from gpart.version import __version__

CHANGING = (
    "thirds",
    "thousand",
    "squared",
    "fewer",
    "negative",
    "AM",
    "dozen",
    "xy",
    "hundredths",
    "below zero",
    "trillion",
)
NEXT = "\nQuestion: And what of twice as many?\nAnswer: The answer is: "


def same_forms(reference: str, answer: str, place: int) -> Iterator[tuple[str, str]]:
    """Yields outputs that are equal to the reference, with their names."""
    wrong = other_digit(answer)
    yield "said, with a unit", f"The answer is: {answer} {('eggs', 'dollars', 'hours', 'miles per hour')[place % 4]}."
    yield "boxed", rf"So it is $\boxed{{{answer}}}$."
    yield "Minerva's form", f"Final Answer: The final answer is ${answer}$. I hope it is correct."
    yield "with its reason", f"The answer is {answer}, because this is what is left."
    yield "run on", reference + NEXT + wrong


def corruptions(reference: str, answer: str, place: int) -> Iterator[tuple[str, str | None]]:
    """Yields the ten corrupted outputs, with their names; None where the corruption would not change the value."""
    worked, value = reference.rsplit("####", 1)[0], number(answer)
    assert value is not None  # noqa: S101  # all references of GSM8K are numbers
    wrong, changed = other_digit(answer), value not in (0, 1)
    word = CHANGING[place % len(CHANGING)] if changed else "fewer"  # 0 thirds is 0, and 1 squared is 1
    factor, unit = ((100, "cents"), (60, "minutes"), (1000, "grams"))[place % 3]
    yield "a word appended", f"{worked}#### {answer} {word}"
    yield "last digit changed", f"{worked}#### {wrong}"
    yield "sign", f"{worked}#### {written(-value)}" if value else None
    yield "fraction inverted", rf"{worked}#### \frac{{1}}{{{answer}}}" if value != 1 else None
    yield "factor 10", f"{worked}#### {written(value * 10)}" if value else None
    yield "a unit of another kind", f"{worked}#### {written(value * factor)} {unit}" if value else None
    cut = answer[:-1].rstrip(",.-")
    yield "truncated", f"{worked}#### {cut}" if cut else "#### "
    yield "run on", f"{worked}#### {wrong}{NEXT}{answer}"
    yield "another box", rf"{reference} No, it is \boxed{{{wrong}}}."
    yield "empty", ""


def other_digit(answer: str) -> str:
    """Returns a number with its last digit one higher, 9 becoming 0."""
    return re.sub(r"[0-9](?=[^0-9]*$)", lambda digit: str((int(digit[0]) + 1) % 10), answer)


def written(value: Fraction) -> str:
    """Returns a number as a model writes it."""
    return str(value) if value.denominator > 1 else f"{int(value):,}"


def main() -> None:
    """Grades them all, and writes what was equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--verified", default="test", help="the files of which verified_match judges all forms")
    parser.add_argument("--column", default="answer")
    asked = parser.parse_args()
    rows = [
        (file.name, row[asked.column])
        for file in sorted(asked.folder.rglob("*.parquet"))
        for row in pyarrow.parquet.read_table(file).to_pylist()
    ]
    tried: dict[str, Counter[str]] = {"exact_match": Counter(), "verified_match": Counter()}
    equal: dict[str, Counter[str]] = {"exact_match": Counter(), "verified_match": Counter()}
    wrong: list[dict[str, Any]] = []
    seconds: Counter[str] = Counter()

    def judge(kind: str, name: str, output: str, reference: str, right: bool) -> None:
        start = time.process_time()
        got = (exact_match if kind == "exact_match" else verified_match)(output, reference)
        seconds[kind] += time.process_time() - start  # type: ignore[assignment]
        label = ("equal: " if right else "unequal: ") + name
        tried[kind][label] += 1
        equal[kind][label] += got
        if got != right:
            wrong.append({"figure": kind, "form": label, "output": output[-80:], "reference": reference[-80:]})

    for place, (file, reference) in enumerate(rows):
        answer = extract_answer(reference)
        assert answer is not None  # noqa: S101  # a reference without one is an error of the data
        forms = [(name, output, True) for name, output in same_forms(reference, answer, place)]
        forms += [(name, output, False) for name, output in corruptions(reference, answer, place) if output is not None]
        for kind in ("exact_match", "verified_match"):
            judge(kind, "itself", reference, reference, right=True)
            if kind == "exact_match" or file.startswith(asked.verified):
                for name, output, right in forms:
                    judge(kind, name, output, reference, right)
    result = {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, one core; Python {platform.python_version()}",
        "gpart": __version__,
        "references": len(rows),
        "seconds": {kind: round(spent, 1) for kind, spent in seconds.items()},
        "equal of tried": {
            kind: {name: f"{equal[kind][name]} of {count}" for name, count in counts.items()}
            for kind, counts in tried.items()
        },
        "judged wrongly": len(wrong),
        "wrong": wrong[:50],
    }
    asked.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "wrong"}, indent=1))


if __name__ == "__main__":
    main()
