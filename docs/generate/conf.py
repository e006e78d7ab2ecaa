"""Sphinx's settings; build.py starts it."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.inspect import signature, stringify_signature

from gpart.version import __version__

project = "GPart for Lightning"
author = "the authors of gpart-lightning"
copyright = author  # noqa: A001  # Sphinx's name
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

myst_heading_anchors = 4
highlight_language = "none"
smartquotes = False  # they would make one dash of two, as in --config

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
add_module_names = False
maximum_signature_line_length = 70
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "GPart for Lightning"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_last_updated_fmt = None
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"

SENTENCES = {"attribute", "property", "data"}
"""What has a sentence in its docstring's first line, in autodoc's words."""


def setup(app: Sphinx) -> None:
    """Sphinx calls it."""
    # Napoleon's own priority is 500.
    app.connect("autodoc-process-docstring", hide_colon, priority=400)
    app.connect("autodoc-process-docstring", show_colon, priority=600)
    app.connect("doctree-read", dashes)
    app.connect("autodoc-process-signature", settings)


def hide_colon(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in a property's first line for its type; ours are sentences."""
    if what in SENTENCES and lines:
        lines[0] = lines[0].replace(": ", ":: ")


def show_colon(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Takes it back, after Napoleon."""
    if what in SENTENCES:
        lines[:] = [line.replace(":: ", ": ") for line in lines]


def dashes(app: Sphinx, page: nodes.document) -> None:
    """Sphinx writes two hyphens behind a parameter's name, for the smart quotes that are off."""
    for text in list(page.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


def settings(app: Sphinx, what: str, name: str, value: Any, options: Any, given: str, returns: str) -> Any:
    """The callbacks' own settings, where the class has a __new__ that takes anything."""
    if what == "class" and given and given.startswith("(*args"):
        return stringify_signature(signature(value.__init__, bound_method=True), unqualified_typehints=True), None
    return None
