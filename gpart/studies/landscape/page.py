"""The interactive page: one file that asks for nothing else, with the numbers and the script that draws them in it.

Invariant: the page's script is fixed, and the runs' names and numbers come into it as data, never as code.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

_PLACE = "DATA"


def page(content: dict[str, Any]) -> str:
    """The page of :func:`gpart.studies.landscape.report.as_json`, with the table under ``table`` and a ``title``.

    Example:
        >>> made = page({"title": "</script><b>", "runs": []})
        >>> made.count("</script>"), "http://" in made or "https://" in made
        (2, False)
    """
    template = files("gpart.studies.landscape").joinpath("page.html").read_text(encoding="utf-8")
    # "<" would end the element that holds the data, whatever stands around it.
    data = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    before, after = template.split(_PLACE, 1)
    return before + data + after
