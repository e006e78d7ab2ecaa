"""Writes the results of a study as table.md, table.tex, table.csv and table.json.

Invariant: the same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpart.serialization.atomic import replacing
from gpart.studies.experiments.latex import latex
from gpart.studies.experiments.listed import csv_text, json_text
from gpart.studies.experiments.places import Place, costs, differences, header, notes, places, said_of_differences
from gpart.studies.experiments.results import Choice, Results


def write_table(results: Results) -> list[Path]:
    """Writes the four files into the study's folder, and returns their paths."""
    folder = results.study.folder
    folder.mkdir(parents=True, exist_ok=True)
    forms = {"md": markdown(results), "tex": latex(results), "csv": csv_text(results), "json": json_text(results)}
    for ending, text in forms.items():
        with replacing(folder / f"table.{ending}") as file:
            file.write(text.encode())
    return [folder / f"table.{ending}" for ending in forms]


def markdown(results: Results) -> str:
    """Returns the content of table.md: the table, the selected candidates, and the runs that are missing or failed."""
    study = results.study
    lines = [header(study)]
    lines += [
        [row.label, *map(_text, scores), *costs(row)] for row, scores in zip(results.rows, places(results), strict=True)
    ]
    parts = [markdown_table(lines), "\n".join(notes(results))]
    if study.baseline is not None:
        shown = [[f"**{text}**" if bold else text for text, bold in line] for line in differences(results)]
        parts.append(f"{said_of_differences(study)}\n\n{markdown_table(shown)}")
    if results.choices:
        chosen = [["cell", "chosen", "validation score", "of"], *(_choice(choice) for choice in results.choices)]
        seeds = study.seeds[: study.tune_seeds]
        by = "the validation score of the first seed"
        if len(seeds) > 1:
            by = f"the mean validation score of seeds {', '.join(map(str, seeds))}"
        parts.append(f"Chosen by {by}:\n\n" + markdown_table(chosen))
    if results.missing:
        parts.append(f"Missing: {results.missing} runs.")
    if results.problems:
        parts.append("Failed:\n\n" + "\n".join(f"- {line}" for line in results.problems))
    return "\n\n".join(parts) + "\n"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown. The first line is the header; all columns but the first are aligned to the right."""
    escaped = [[text.replace("|", "\\|").replace("\n", " ") for text in line] for line in lines]
    rule = ["---", *("---:" for _ in escaped[0][1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [escaped[0], rule, *escaped[1:]])


def _text(place: Place) -> str:
    text = place.value or "-"
    if place.deviation is not None:
        text += f" ± {place.deviation}"
    if place.best:
        text = f"**{text}**"
    if place.seeds:
        text += f" [{place.seeds}]"
    return text if place.paper is None else f"{text} (paper {place.paper})"


def _choice(choice: Choice) -> list[str]:
    def text(score: float | None) -> str:
        return "none" if score is None else f"{score:.4g}"

    of = "; ".join(f"{candidate}: {text(score)}" for candidate, score in choice.scores.items())
    if choice.chosen is None:
        return [choice.cell, "-", choice.why, of]
    chosen = choice.chosen.text + (" (an end of its grid)" if choice.at_an_end else "")
    return [choice.cell, chosen, text(choice.scores[choice.chosen.text]), of]
