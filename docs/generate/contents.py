"""The site's order: what stands under which heading of the sidebar, and below which page."""

from __future__ import annotations

SECTIONS = {
    "Start": ["start/install", "start/quick-start", "start/your-project", "questions", "when-not", "limits"],
    "Notebooks": [
        f"examples/notebooks/{name}" for name in ("first_adapter", "your_lightning_project", "hundred_adapters")
    ],
    "Concepts": ["concepts/partition", "concepts/isometry", "concepts/layers", "concepts/files", "concepts/precision"],
    "How to train": [
        *("howto/recipes", "own-data", "own-pictures-and-questions", "howto/vision", "howto/mathematics"),
        *("howto/lightning-module", "fabric", "examples/from_peft", "howto/networks", "howto/fused-weights"),
        *("howto/memory", "scaling", "studies", "howto/failed-run", "examples/README"),
    ],
    "How to use adapters": ["adapters", "several", "arithmetic", "serving"],
    "Reproduce the paper": ["reproduce", "recipes"],
    "Reference": [
        *("reference/python", "reference/cli", "reference/recipes", "projections", "reference/errors"),
        *("reference/messages", "SECURITY", "CONTRIBUTING", "CHANGELOG"),
    ],
    "Evidence": ["benchmarks/README", "projects", "isometry", "landscape", "performance"],
}
"""Pages by their paths in the site, without the ending, in the order of the sidebar."""

BELOW = {
    "reference/python": [f"reference/{room}" for room in
                         ("gpart", "callbacks", "lightning_modules", "datamodules", "arithmetic", "serving")],
    "benchmarks/README": [f"benchmarks/{name}/README" for name in
                          ("quickstart", "quickstart-vision", "methods", "mrpc-recipe", "gsm8k-smollm2",
                           "d-sweep", "ablations", "landscape", "isometry", "speed", "launch", "serving", "faults", "grading", "gpu")],
}  # fmt: skip
"""Pages that stand below another one."""

TITLES = {
    "fabric": "Fabric",
    "examples/from_peft": "From PEFT",
    "examples/notebooks/first_adapter": "A first adapter",
    "examples/notebooks/your_lightning_project": "Your Lightning project",
    "examples/notebooks/hundred_adapters": "A hundred adapters",
    "howto/networks": "Several networks, teachers",
    "howto/fused-weights": "Fused weights, experts, LSTM",
    "scaling": "Several devices, and faults",
    "studies": "Studies",
    "adapters": "Merge, export, share",
    "several": "Several on one model",
    "arithmetic": "As numbers",
    "serving": "Serve",
    "reproduce": "Tables and figures",
    "recipes": "The recipes' sources",
    "projections": "Other maps",
    "projects": "Real projects",
    "landscape": "Loss landscape",
}
"""What the sidebar calls a page whose own title is long."""


def listed() -> set[str]:
    """Every page that the sidebar leads to."""
    return {"index", *(page for group in (*SECTIONS.values(), *BELOW.values()) for page in group)}


def trees(page: str) -> str:
    """What is added to a page so that Sphinx knows what stands below it; nothing for most."""
    if page == "index":
        return "".join(_tree(pages, caption) for caption, pages in SECTIONS.items())
    return _tree(BELOW[page]) if page in BELOW else ""


def _tree(pages: list[str], caption: str = "") -> str:
    head = f":caption: {caption}\n" if caption else ""
    return f"\n```{{toctree}}\n:hidden:\n{head}\n" + "".join(map(_entry, pages)) + "```\n"


def _entry(page: str) -> str:
    return f"{TITLES[page]} </{page}>\n" if page in TITLES else f"/{page}\n"
