"""The notebooks of examples/ as pages of the site: their cells, and what these printed and drew when they were executed.

Figures stand in the page itself, as they do in the notebook's file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from repository import ROOT

COLOURS = re.compile(r"\x1b\[[\d;]*m")
"""What a terminal takes for bold and the like."""


def pages() -> dict[str, Path]:
    """The notebooks, by their pages' paths in the site."""
    found = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
    return {path.relative_to(ROOT).with_suffix(".md").as_posix(): path for path in found}


def page(path: Path) -> str:
    """The whole page."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    title, *parts = [part for cell in cells for part in _parts(cell, path.stem)]
    said = f"An executed notebook, `{path.relative_to(ROOT).as_posix()}`."
    heading, _, rest = title.partition("\n")
    return "\n\n".join([heading, said, rest.strip(), *parts]) + "\n"


def _parts(cell: dict[str, Any], name: str) -> list[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [text]
    return [_block(text, "python"), *(_shown(output, name) for output in cell["outputs"])]


def _shown(output: dict[str, Any], name: str) -> str:
    if "image/png" in output.get("data", {}):
        # A file of the notebook's has line breaks in its base64.
        return f"![A figure of {name}](data:image/png;base64,{''.join(output['data']['image/png'].split())})"
    text = output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"]
    return _block(COLOURS.sub("", "".join(text)).rstrip(), "text")


def _block(text: str, language: str) -> str:
    ticks = "`" * (max(map(len, re.findall("`+", text)), default=2) + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"
