"""Collects the words that GSM8K counts by, for ``gpart/lightning_modules/mathematics/counted_words.py``.

    python benchmarks/grading/words.py ../shared/data/gsm8k

A word is taken if it follows a number, or "how many", at least twice in the questions and worked answers, and has the
form of a plural; or if it stands between a number and such a word (*duck eggs*); or behind such a word and "of" (*cups of
sugar*). What changes a value, is a verb or belongs to another phrase was struck out by hand: the lists below.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pyarrow.parquet

NO_END_IN_S = "children deer dice feet fish geese men mice people sheep shrimp teeth trout women"
NOT_COUNTED = """
adds arrives bonus buys changes costs couples delicious does dozens doubles drives eats equals gets gives goes halves has
his hours its lasts listens makes means minus needs ones others pairs pays plus precious produces quarters receives saves
schoolers scores sells sours spends takes this thus times towards uncommons wants was weighs
"""
NO_KIND = """
added additional and any are available average before billion but buying double dozen even extra fallen fee fewer fifth first
for four fourth from high into less like long lost million missing more needed off old other per playing point raised rest
second selling seventh she short shoveling sided sitting sixth sold some sub such talking tall tax that the then third
thousand three tied total twin two wasted were what which whole winning work
"""
NO_STUFF = """
added all another any daily different driving drink each easter equal five four free her key lower new non note one other
playing pitch power practice profit reading recess root run runoff sailing saving swimming that the their them these this three
time training two use walking working
"""
NUMBER = r"(?<![\w.,/])\$?\d[\d,.]*"
WORD = r"([a-z]{3,})(?![a-z'])"


def collect(text: str) -> dict[str, list[str]]:
    """Returns the plurals, the kinds that stand before them, and what there are cups and bags of."""
    counted = Counter(
        word
        for start in (NUMBER, rf"{NUMBER} [a-z]{{3,}}", "[Hh]ow many", "[Hh]ow many [a-z]+")
        for word in re.findall(rf"{start} {WORD}", text)
    )
    forms = NO_END_IN_S.split()
    plurals = {
        word
        for word, times in counted.items()
        if times >= 2 and (word in forms or re.search("[^s]s$", word)) and word not in NOT_COUNTED.split()
    }
    kinds = Counter(kind for kind, word in re.findall(rf"{NUMBER} ([a-z]{{3,}}) {WORD}", text) if word in plurals)
    stuff = Counter(thing for word, thing in re.findall(rf"\b([a-z]{{3,}}) of {WORD}", text) if word in plurals)
    return {
        "PLURALS": sorted(plurals),
        "KINDS": _twice(kinds, plurals | set((NO_KIND + NOT_COUNTED).split())),
        "STUFF": _twice(stuff, plurals | set(kinds) | set(NO_STUFF.split())),
    }


def _twice(found: Counter[str], but: set[str]) -> list[str]:
    return sorted(word for word, times in found.items() if times >= 2 and word not in but)


def main(folder: Path) -> None:
    """Prints the lists as they stand in the module."""
    rows = [
        row
        for split in ("train", "test")
        for row in pyarrow.parquet.read_table(folder / "main" / f"{split}-00000-of-00001.parquet").to_pylist()
    ]
    answers = [row["question"] + "\n" + re.sub("<<[^>]*>>", "", row["answer"]) for row in rows]
    for name, words in collect("\n".join(answers)).items():
        print(f'{name} = """')
        print(textwrap.fill(" ".join(words), 119, break_on_hyphens=False))
        print('"""')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
