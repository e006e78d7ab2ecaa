"""Builds the site: python docs/generate/build.py [OUT], by default into site/.

The pages are collected in a folder of their own first, since half of them lie outside docs/ or are made from the code.
A warning of Sphinx, such as a link that leads nowhere, is an error.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from repository import ROOT

DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))  # the package of this checkout, installed or not

import commands  # noqa: E402
import contents  # noqa: E402
import messages  # noqa: E402
import notebooks  # noqa: E402
import python_pages  # noqa: E402
import recipe_index  # noqa: E402
import repository  # noqa: E402


def made() -> dict[str, str]:
    """The pages that are made from the code, by their paths in the site."""
    return {
        "reference/cli.md": commands.page(),
        "reference/recipes.md": recipe_index.page(),
        "reference/messages.md": messages.page(),
        "reference/python.md": python_pages.index(),
        **{f"reference/{room}.md": python_pages.page(room) for room in python_pages.ROOMS},
    }


def written() -> dict[str, str]:
    """The pages that stand in the repository, by their paths in the site, with its links."""
    here = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
    texts = {page: path.read_text(encoding="utf-8") for page, path in (here | repository.pages()).items()}
    return texts | {page: notebooks.page(path) for page, path in notebooks.pages().items()}


def collect(folder: Path) -> None:
    """Writes every page, and every file that one leads to, into a folder that Sphinx reads."""
    pages, waiting = written(), set()
    for page, text in pages.items():
        waiting.update(repository.targets(text, page))
    files: dict[str, str] = {}
    while waiting:
        path = waiting.pop()
        place = repository.in_site(path)
        if place in pages or place in files:
            continue
        if place == path or place == path.removeprefix("docs/"):
            files[place] = path
        else:
            pages[place] = repository.shown(path)
            if (ROOT / path).is_dir():
                waiting.update(repository.targets(pages[place], place))
    pages = {page: repository.relinked(text, page) for page, text in pages.items()} | made()
    for page, text in pages.items():
        name = page.removesuffix(".md")
        alone = "" if name in contents.listed() else "---\norphan: true\n---\n\n"
        _write(folder / page, alone + text + contents.trees(name))
    for place, path in files.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target)


def build(out: Path) -> int:
    """Collects the pages and runs Sphinx; its exit status."""
    from sphinx.cmd.build import main  # noqa: PLC0415  # collecting needs no Sphinx

    os.environ.setdefault("TQDM_DISABLE", "1")
    with tempfile.TemporaryDirectory() as folder:
        collect(Path(folder))
        return main(["-W", "--keep-going", "-q", "-E", "-b", "html", "-c", str(DOCS / "generate"), folder, str(out)])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site")))
