"""The page of the shipped recipes, from their first lines."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from gpart.cli.configs import recipes

HEAD = """# Shipped recipes

This page is made from the recipes' first lines. `gpart configs` prints the same list, `gpart configs --copy NAME` copies one to edit,
and [Recipes](../howto/recipes.md) says how they are put together.

"""

SAYS = {
    "": "Begin here: they run offline, or take your own data",
    "glue": "The paper's Tables 1 and 6, RoBERTa-base",
    "glue-large": "The paper's Tables 1 and 6, RoBERTa-large",
    "math": "The paper's Tables 2 and 7",
    "methods": "Overlays: another method on the recipe before them",
    "methods/causal": "Overlays for causal language models",
    "studies": "Studies, for `gpart study NAME`",
    "vision": "The paper's Tables 3 and 8, ViT-base",
    "vision-large": "The paper's Tables 3 and 8, ViT-large",
}


def headline(path: Path) -> str:
    """A recipe's first comment: its first lines to the end of the sentence."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# "))
        if line.rstrip().endswith((".", ":")):
            break
    return " ".join(words)


def page() -> str:
    """The whole page."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name, path in recipes().items():
        said = headline(path).replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")
        folders[name.rpartition("/")[0]].append(f"| `{name}` | {said} |\n")
    parts = [
        f"## {SAYS[folder]}\n\n| name | what it is |\n| --- | --- |\n{''.join(rows)}\n"
        for folder, rows in sorted(folders.items())
    ]
    return HEAD + "".join(parts)
