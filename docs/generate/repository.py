"""Pages of the repository that do not lie in docs/, as pages of the site, with links that lead where they led.

Invariant: a page's text is what stands in the repository. On GitHub its links go by the repository's folders; here each
goes to the same file's place in the site, or is left for Sphinx to refuse.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ELSEWHERE = ("benchmarks", "examples")
"""Folders beside docs/ whose Markdown is in the site."""

ALONE = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
"""Pages at the top of the repository that are in it too."""

LINK = re.compile(r"(?<=\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
LANGUAGES = {".py": "python", ".c": "c", ".yaml": "yaml", ".sh": "bash", ".csv": "text", ".jsonl": "json"}
"""Of files that a browser would download rather than show: they become pages."""

MOST = 80_000
"""Bytes that such a page may have; a larger file is put into the site as it is."""


def pages() -> dict[str, Path]:
    """The site's Markdown outside docs/, by its path in the site, which is that in the repository."""
    found = [path for folder in ELSEWHERE for path in sorted((ROOT / folder).rglob("*.md"))]
    return {path.relative_to(ROOT).as_posix(): path for path in [*found, *(ROOT / name for name in ALONE)]}


def in_repository(page: str) -> str:
    """Where a page of the site lies in the repository."""
    return page if page.split("/", maxsplit=1)[0] in ELSEWHERE or page in ALONE else f"docs/{page}"


def in_site(path: str) -> str:
    """Where a file or folder of the repository stands in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    there = ROOT / path
    if there.is_dir():
        return f"{path}/README.md"
    if there.suffix == ".ipynb":
        return f"{path.removesuffix('.ipynb')}.md"
    return f"{path}.md" if there.suffix in LANGUAGES and there.stat().st_size <= MOST else path


def targets(text: str, page: str) -> list[str]:
    """The files and folders of the repository that a page's links lead to."""
    folder = posixpath.dirname(in_repository(page))
    found = [posixpath.normpath(posixpath.join(folder, link)) for link, _ in LINK.findall(text)]
    return [path for path in found if not path.startswith("..") and (ROOT / path).exists()]


def relinked(text: str, page: str) -> str:
    """A page's text with links to their targets' places in the site."""
    folder = posixpath.dirname(in_repository(page))

    def there(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        if path.startswith("..") or not (ROOT / path).exists():
            return link[0]
        return posixpath.relpath(in_site(path), posixpath.dirname(page) or ".") + link[2]

    return LINK.sub(there, text)


def shown(path: str) -> str:
    """A page that shows a file, or lists a folder."""
    there = ROOT / path
    if there.is_dir():
        found = (one.relative_to(there).as_posix() for one in there.rglob("*") if one.is_file())
        names = sorted(name for name in found if "__pycache__" not in name and not name.startswith((".", "runs/")))
        return f"# {path}/\n\n" + "".join(f"- [`{name}`]({name})\n" for name in names)
    text = there.read_text(encoding="utf-8")
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=2) + 1)
    return f"# {path}\n\n{ticks}{LANGUAGES[there.suffix]}\n{text}{ticks}\n"
