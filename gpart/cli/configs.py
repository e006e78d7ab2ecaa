"""The shipped recipes: YAML files in ``gpart/configs``, found by their name without the ending."""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path

from gpart.cli.message import Parser
from gpart.errors import GPartError, GPartFileError
from gpart.studies.experiments.recipes import CONFIGS, recipe_file

DESCRIPTION = """Lists the shipped recipes with a line about each. 'gpart fit --config NAME' finds a recipe by its name; those
under methods/ change the method of the recipe before them, and those under studies/ are for 'gpart study NAME'."""


def recipes() -> dict[str, Path]:
    """Every shipped recipe's file by its name, such as ``quickstart`` or ``glue/rte``."""
    return {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))}


def find_recipe(name: str) -> str:
    """The file that ``--config NAME`` means: one that exists, else a shipped recipe.

    Raises:
        GPartFileError: if there is neither, with the closest names.
        GPartError: if the file cannot be read.
    """
    path = recipe_file(name)
    if path is None:
        known = recipes()
        close = difflib.get_close_matches(name, known, n=3) or list(known)[:10]
        raise GPartFileError(
            f"no config file and no recipe {name!r}; close are {', '.join(close)} (gpart configs lists all)"
        )
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GPartError(f"the recipe {path} cannot be read: {error}") from error
    return str(path)


def with_recipes(words: list[str]) -> list[str]:
    """A command line in which every ``--config NAME`` names a file, in one word.

    Example:
        >>> [word.rpartition("/")[2] for word in with_recipes(["fit", "--config", "quickstart", "--config=glue/rte"])]
        ['fit', 'quickstart.yaml', 'rte.yaml']
        >>> with_recipes(["fit", "-c", "quickstart"]) == with_recipes(["fit", "--config=quickstart"])
        True
    """
    result: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in ("--config", "-c"):
            name = next(rest, None)
            result += [word] if name is None else ["--config=" + find_recipe(name)]
        elif word.startswith("--config="):
            result.append("--config=" + find_recipe(word.removeprefix("--config=")))
        else:
            result.append(word)
    return result


def configs_command(words: list[str]) -> int:
    """``gpart configs``: lists the recipes, or copies one to edit.

    Raises:
        GPartError: if the recipe to copy is not there, or the copy's place is taken or cannot be written.
    """
    parser = Parser(prog="gpart configs", description=DESCRIPTION)
    parser.add_argument("--copy", metavar="NAME", help="copy this recipe to the current folder, where you can edit it")
    asked = parser.parse_args(words)
    if asked.copy is None:
        names = recipes()
        width = max(map(len, names), default=0)
        for name, path in names.items():
            print(f"{name:<{width}}  {_headline(path)}")
        return 0
    source = Path(find_recipe(asked.copy))
    target = Path(source.name)
    if target.exists():
        raise GPartError(f"{target} is there already; nothing was copied from {source}")
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise GPartError(f"{target} cannot be written here: {error}") from error
    print(f"{target}: edit it, then gpart fit --config {target}")
    return 0


def _headline(path: Path) -> str:
    first = path.read_text(encoding="utf-8").splitlines()[:1]
    return first[0].lstrip("# ") if first and first[0].startswith("#") else ""
