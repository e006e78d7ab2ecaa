"""Every message of a GPartError, read from the source, and the page that lists them."""

from __future__ import annotations

import ast
from collections import defaultdict

from repository import ROOT

HEAD = """# All messages

Each message of a `GPartError`, as it stands in the source; `…` is where a value goes. A message says what was asked and what was
found, and mostly what to do. Those that people meet most are explained under [Errors](errors.md). Search this page for the words
that stay the same.

"""


def messages() -> list[tuple[str, str]]:
    """Module and message of each place that raises a GPartError."""
    found = []
    for path in sorted((ROOT / "gpart").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        # The lines of docstrings' examples are no places that raise: ast sees them as text.
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            if getattr(node.func, "id", "") in ("GPartError", "GPartFileError"):
                text = " ".join(_text(node.args[0]).split())
                if text.strip("… .:;"):
                    found.append((module, text))
    return found


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def page() -> str:
    """The whole page."""
    rooms: dict[str, dict[str, None]] = defaultdict(dict)
    for module, text in messages():
        parts = module.split(".")
        rooms[".".join(parts[:2])][text] = None
    listed = [
        f"## {room}\n\n" + "".join(f"- {_plain(text)}\n" for text in texts) + "\n" for room, texts in rooms.items()
    ]
    return HEAD + "".join(listed)


def _plain(text: str) -> str:
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, {"<": "&lt;", ">": "&gt;"}.get(sign, "\\" + sign))
    return text
