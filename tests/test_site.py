"""The site: its links and anchors, the errors that it explains, the questions that it answers, and that it builds."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def generate() -> object:
    """Imports one of docs/generate's modules, which lie in no package."""
    sys.path.insert(0, str(DOCS / "generate"))

    def get(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield get
    sys.path.remove(str(DOCS / "generate"))


def rows(page: str) -> list[list[str]]:
    """The cells of a page's tables, without their heads."""
    lines = [line for line in (DOCS / page).read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if not set(row[0]) <= {"-"} and row[0] not in ("question", "the message has")]


def slug(heading: str) -> str:
    """GitHub's anchor of a heading, which is MyST's too."""
    plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def test_links_of_the_docs_lead_to_files_and_headings() -> None:
    made = {DOCS / "reference" / name for name in ("cli.md", "recipes.md", "messages.md")}
    looked_at = 0
    for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in link:
                continue
            target, _, anchor = link.partition("#")
            path = (page.parent / target).resolve() if target else page
            assert path.exists() or path in made, f"{page}: {link}"
            assert not anchor or anchor in anchors(path), f"{page}: {link}"
            looked_at += 1
    assert looked_at > 100


def test_twenty_questions_have_answers_in_the_sidebar(generate) -> None:
    table = rows("questions.md")
    assert len(table) == 20
    listed = generate("contents").listed()
    for question, answer in table:
        links = re.findall(r"\]\(([^)#]+)", answer)
        assert question.endswith("?")
        assert links
        for link in links:
            page = os.path.relpath((DOCS / link).resolve(), DOCS).removeprefix("../").removesuffix(".md")
            assert page in listed, (question, link)


def test_every_page_of_the_sidebar_is_there(generate) -> None:
    contents, build = generate("contents"), generate("build")
    there = {page.removesuffix(".md") for page in build.written()}
    made = {"reference/" + name for name in ("python", "cli", "recipes", "messages", *generate("python_pages").ROOMS)}
    assert contents.listed() <= there | made
    own = {page for page in there if not page.startswith(("benchmarks/", "examples/"))}
    assert own <= contents.listed(), "a page of docs/ that nobody finds"
    assert contents.TITLES.keys() <= contents.listed()


def test_explained_errors_are_in_the_source(generate) -> None:
    known = [text for _, text in generate("messages").messages()]
    assert len(known) > 600
    table = rows("reference/errors.md")
    assert len(table) >= 40
    for message, cause, remedy in table:
        words = message.strip("`")
        assert any(words in text for text in known), words
        assert cause
        assert remedy


def test_messages_are_read_as_they_stand(generate) -> None:
    known = generate("messages").messages()
    assert ("gpart.config", "d must be a whole number, 1 or more, got …") in known
    page = generate("messages").page()
    assert "d must be a whole number, 1 or more, got …" in page
    assert r"target\_modules=" in page  # Markdown's own signs are no markup there


def test_the_command_page_has_every_command_and_word(generate) -> None:
    from gpart.cli.commands import LINES

    page = generate("commands").page()
    assert re.findall(r"^### gpart (\w+)$", page, re.MULTILINE) == list(LINES)
    merge = page.partition("### gpart merge")[2].partition("### ")[0]
    assert "| `--dtype" in merge
    assert "| `OUT` |" in merge
    assert "W0 + P·theta" in merge
    assert "| `--output OUTPUT` |" not in page.partition("## The others")[0]
    fit = page.partition("### gpart validate")[0]
    assert "| `--resume` | fit, " in fit
    assert "| `--output` | predict |" in fit


def test_the_recipe_page_has_every_recipe(generate) -> None:
    from gpart.cli.configs import recipes

    index = generate("recipe_index")
    page = index.page()
    assert set(re.findall(r"^\| `([^`]+)` \| \S", page, re.MULTILINE)) == set(recipes())
    assert (
        index.headline(recipes()["text"]) == "Your own texts, from a file: classes, several classes a text, or numbers."
    )


def test_links_lead_to_the_same_file_in_the_site(generate) -> None:
    relinked = generate("repository").relinked
    assert relinked("[a](../gpart/ops/cpu.c) [b](../README.md)", "x.md").startswith("[a](gpart/ops/cpu.c.md)")
    assert relinked("[a](../../docs/isometry.md#see)", "benchmarks/isometry/README.md") == "[a](../../isometry.md#see)"
    assert relinked("[a](isometry.md)", "concepts/layers.md") == "[a](isometry.md)"
    assert relinked("[a](../../examples/data)", "start/x.md") == "[a](../examples/data/README.md)"
    assert relinked("[a](https://x.org/y.md) [b](#here)", "x.md") == "[a](https://x.org/y.md) [b](#here)"


def test_a_notebook_is_a_page_with_its_outputs(generate) -> None:
    pages = generate("build").written()
    for name in ("first_adapter", "your_lightning_project", "hundred_adapters"):
        text = pages[f"examples/notebooks/{name}.md"]
        assert text.startswith("# ")
        assert text.count("```python\n") > 8
        assert len(re.findall(r"^!\[A figure of \w+\]\(data:image/png;base64,[\w+/=]+\)$", text, re.MULTILINE)) >= 4
        assert "\x1b" not in text  # a terminal's colours
    relinked = generate("repository").relinked
    assert relinked("[a](first_adapter.ipynb)", "examples/notebooks/x.md") == "[a](first_adapter.md)"
    assert (
        relinked("[a](../examples/notebooks/first_adapter.ipynb)", "x.md") == "[a](examples/notebooks/first_adapter.md)"
    )


class Links(HTMLParser):
    """What a page's anchors lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        where = dict(attrs).get("href")
        if tag == "a" and where:
            self.found.append(where)


def reached(path: Path) -> set[Path]:
    parser = Links()
    parser.feed(path.read_text(encoding="utf-8"))
    inside = [unquote(link.partition("#")[0]) for link in parser.found if "://" not in link]
    return {(path.parent / link).resolve() for link in inside if link}


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_reads_offline(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    run = subprocess.run(
        [sys.executable, DOCS / "generate" / "build.py", tmp_path / "site"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    site = tmp_path / "site"
    home = site / "index.html"
    first = reached(home)
    second = set().union(*(reached(page) for page in first if page.suffix == ".html"))
    for _, answer in rows("questions.md"):
        for link in re.findall(r"\]\(([^)#]+)", answer):
            page = os.path.relpath((DOCS / link).resolve(), DOCS).removeprefix("../").removesuffix(".md")
            assert site / f"{page}.html" in first | second, link
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?:https?:)?//", text), page
        missing = [there for there in reached(page) if not there.exists()]
        assert not missing, (page, missing[:3])
