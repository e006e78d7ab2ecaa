"""The table of a study in LaTeX: table.tex, which a paper reads by its command ``input``.

Invariant: every row has as many columns as the header, and no text of a study's file is taken for a command.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpart.studies.experiments.places import Place, costs, differences, header, notes, places, said_of_differences
from gpart.studies.experiments.results import Results

_ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "[": "{[}",  # behind the end of a row, a bracket would be taken for that command's argument, and so would a star
    "*": "{*}",
    "\n": " ",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def latex(results: Results) -> str:
    r"""Returns the content of table.tex: the table, and that of the differences if there is a baseline.

    It needs ``\usepackage{booktabs}``. What is missing or has failed is said in the caption.
    """
    study = results.study
    said = notes(results)
    if results.missing:
        said.append(f"Missing: {results.missing} runs.")
    if results.problems:
        said.append(f"Failed or without a score: {len(results.problems)} runs.")
    lines = [[escape(text) for text in header(study)]]
    lines += [
        [escape(row.label), *map(_text, scores), *map(_signed, costs(row))]
        for row, scores in zip(results.rows, places(results), strict=True)
    ]
    label = re.sub(r"[^A-Za-z0-9]+", "-", study.name).strip("-")
    found = [r"% needs \usepackage{booktabs}", _table(lines, " ".join(said), label)]
    if study.baseline is not None:
        head, *rows = differences(results)
        shown = [[escape(text) for text, _ in head]]
        shown += [[escape(row[0][0]), *(_bold(_signed(text), bold) for text, bold in row[1:])] for row in rows]
        found.append(_table(shown, said_of_differences(study), f"{label}-differences"))
    return "\n".join(found)


def escape(text: str) -> str:
    r"""Returns a text in which LaTeX finds no command.

    >>> print(escape("50 % of a_b & c"))
    50 \% of a\_b \& c
    """
    return "".join(_ESCAPED.get(letter, letter) for letter in text)


def _table(lines: Sequence[Sequence[str]], caption: str, label: str) -> str:
    head, *rows = (f"    {' & '.join(line)} \\\\" for line in lines)
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escape(caption)}}}",
            rf"  \label{{tab:{label}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}",
            *(r"    \toprule", head, r"    \midrule", *rows, r"    \bottomrule"),
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _text(place: Place) -> str:
    parts = [_bold(_signed(place.value or "-"), place.best)]
    if place.deviation is not None:
        parts.append(rf"$\pm$ {place.deviation}")
    if place.seeds:
        parts.append(escape(f"[{place.seeds}]"))
    if place.paper is not None:
        parts.append(f"(paper {_signed(place.paper)})")
    return " ".join(parts)


def _bold(text: str, bold: bool) -> str:
    return rf"\textbf{{{text}}}" if bold else text


def _signed(text: str) -> str:
    """Numbers with minus signs as long as in formulas; a dash alone stands for nothing."""
    return "--" if text == "-" else re.sub(r"-(?=[\d.])", "$-$", escape(text))
