"""What MkDocs asks while it builds the site: pages that are made, and pages that lie elsewhere in the repository."""

from __future__ import annotations

import re
import xml.etree.ElementTree as etree  # noqa: S405  # what Markdown makes, out of our own pages
from pathlib import Path

import commands
import messages
import recipe_index
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from repository import ROOT, in_site, pages, relinked, shown, targets

MADE = {"reference/cli.md": commands.page, "reference/recipes.md": recipe_index.page, "reference/messages.md": messages.page}


class _Role(InlineProcessor):
    """Docstrings name things by Sphinx's roles, such as :func:`gpart.heads.head_modules`: shown as code."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[etree.Element, int, int]:  # noqa: N802  # Markdown's name
        code = etree.Element("code")
        code.text = m.group(1).removeprefix("~")
        return code, m.start(0), m.end(0)


class Roles(Extension):
    """Adds :class:`_Role` before Markdown's own code spans."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  # Markdown's name
        """Markdown calls it."""
        md.inlinePatterns.register(_Role(r":(?:class|func|mod|meth|attr|data|exc):`([^`]+)`", md), "roles", 200)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """For the pages and for mkdocstrings."""
    config.markdown_extensions.append(Roles())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made, those from beside docs/, and what these and those of docs/ lead to."""
    texts = {uri: path.read_text(encoding="utf-8") for uri, path in pages().items()}
    texts |= {file.src_uri: Path(str(file.abs_src_path)).read_text(encoding="utf-8") for file in files.documentation_pages()}
    for uri in pages():
        files.append(File.generated(config, uri, content=texts[uri]))
    for uri, make in MADE.items():
        files.append(File.generated(config, uri, content=make()))
    for uri, text in texts.items():
        for path in targets(text, uri):
            _add(path, files, config)
    return files


def _add(path: str, files: Files, config: MkDocsConfig) -> None:
    uri = in_site(path)
    if files.get_file_from_path(uri):
        return
    if uri == path:
        files.append(File.generated(config, uri, content=(ROOT / path).read_bytes()))
        return
    files.append(File.generated(config, uri, content=shown(path)))
    for inner in targets(shown(path), f"{path}/README.md") if (ROOT / path).is_dir() else []:
        _add(inner, files, config)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that go by the repository's folders go by the site's."""
    return relinked(markdown, page.file.src_uri)
