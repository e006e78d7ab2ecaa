"""The model card that ``gpart push`` writes: what the adapter is, and how it is loaded.

Invariant: what the card says of the adapter comes from its file; base, metrics, data and recipe may be the user's words, set
so that they stay text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from gpart.bases.fitting import Needs, choose
from gpart.errors import GPartError
from gpart.serialization.hub import is_hub_name
from gpart.serialization.manifest import Manifest

_METRIC = re.compile(r"([A-Za-z0-9][\w./@ -]{0,63})=(.+)", re.ASCII)


@dataclass(frozen=True)
class Told:
    """What the user says of an adapter, which its file does not know."""

    base: str | None = None
    """The base model: a name on the hub, or a folder, of which only the last part is told."""

    metrics: dict[str, float] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    recipe: str | None = None
    """A recipe's text."""


def parse_metric(text: str) -> tuple[str, float]:
    """``name=value`` as both.

    Raises:
        GPartError: if it is none.

    Example:
        >>> parse_metric("val/accuracy=0.91")
        ('val/accuracy', 0.91)
    """
    found = _METRIC.fullmatch(text)
    try:
        return (found[1].strip(), float(found[2])) if found else _no_metric(text)
    except ValueError:
        return _no_metric(text)


def _no_metric(text: str) -> tuple[str, float]:
    raise GPartError(f"--metric must be NAME=NUMBER, such as accuracy=0.91, got {text!r}")


def card(name: str, manifest: Manifest, tensors: Mapping[str, Tensor], told: Told) -> str:
    """A model card in Markdown with the hub's front matter.

    Args:
        name: ``user/name``, as it is loaded.
        manifest: the adapter's.
        tensors: the adapter's.
        told: what the user says of it; base and metrics are the adapter's own where he says nothing.
    """
    told = replace(told, base=told.base or manifest.about.base, metrics=told.metrics or _scored(manifest))
    on_hub = told.base is not None and not Path(told.base).exists() and is_hub_name(told.base)
    matter: dict[str, Any] = {
        "library_name": "gpart",
        **({"base_model": told.base, "base_model_relation": "adapter"} if on_hub else {}),
        "tags": ["gpart", "adapter", "parameter-efficient-fine-tuning"],
        **({"datasets": [" ".join(each.split()) for each in told.datasets]} if told.datasets else {}),
        **({"metrics": list(told.metrics)} if told.metrics else {}),
    }
    base = "its base model" if told.base is None else _code(told.base if on_hub else last_part(told.base))
    config = manifest.config
    heads = sorted(config.modules_to_save or [])
    sections = [
        f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True, width=float('inf'))}---",
        f"# {name.rpartition('/')[2]}",
        f"A GPart adapter for {base}. Its adapted weights are W0 + P·theta: one vector theta of {config.d:,} numbers for"
        f" {manifest.size:,} weights, which a seed assigns to them."
        + (f" Trained in full beside it: {', '.join(map(_code, heads))}." if heads else ""),
        f"```bash\npip install gpart-lightning\n```\n\n```python\n{_loading(name, manifest, tensors, told.base)}\n```",
        "As one plain model, which needs no gpart: "
        + _code(f"gpart merge {'BASE' if told.base is None else last_part(told.base)} {name} OUT")
        + ".",
        "## Adapter\n\n" + _table(_settings(manifest)),
    ]
    if told.metrics:
        sections.append("## Metrics\n\n" + _table({metric: f"{value:g}" for metric, value in told.metrics.items()}))
    if told.datasets:
        sections.append("## Data\n\n" + "\n".join(f"- {_code(each)}" for each in told.datasets))
    if told.recipe is not None:
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", told.recipe)), default=0))
        sections.append(f"## Recipe\n\n{fence}yaml\n{told.recipe.strip()}\n{fence}")
    versions = ", ".join(f"{library} {version}" for library, version in manifest.versions.items())
    sections.append(f"## Versions\n\n{_plain(versions)}. Base fingerprint {_code(manifest.base)}.")
    return "\n\n".join(sections) + "\n"


def _scored(manifest: Manifest) -> dict[str, float]:
    score = manifest.about.score
    value = score.get("value")
    return {str(score["monitor"]): float(value)} if "monitor" in score and isinstance(value, int | float) else {}


def _settings(manifest: Manifest) -> dict[str, str]:
    config, about = manifest.config, manifest.about
    shown = {"d": f"{config.d:,}", "D": f"{manifest.size:,}", "seed": str(config.seed)}
    for one in fields(config):
        value = getattr(config, one.name)
        if one.name not in shown and value != one.default:
            shown[one.name] = ", ".join(value) if isinstance(value, list) else str(value)
    told = {
        "task": about.task or "",
        "labels": ", ".join(about.labels or ()),
        **{key: str(value) for key, value in about.inputs.items()},
    }
    counts = {"adapted weights": f"{len(manifest.weights):,}", "scheme": manifest.scheme}
    return {**shown, **counts, **{key: value for key, value in told.items() if value}}


def _loading(name: str, manifest: Manifest, tensors: Mapping[str, Tensor], base: str | None) -> str:
    """The lines that load the adapter; with the very class where the base's config is at hand."""
    model = f"...  # {'the base' if base is None else _plain(last_part(base))}, as it was built for training"
    lines = ["from gpart import load_adapter"]
    if base is not None and not base.startswith(("timm:", "python:")) and (found := _class_of(base, manifest, tensors)):
        kind, labels = found
        lines.append(f"from transformers import {kind}")
        more = "" if labels is None else f", num_labels={labels}"
        model = f'{kind}.from_pretrained("{_plain(base if is_hub_name(base) else last_part(base))}"{more})'
    return "\n".join([*lines, "", f"model = {model}", f'load_adapter(model, "{name}")'])


def _class_of(base: str, manifest: Manifest, tensors: Mapping[str, Tensor]) -> tuple[str, int | None] | None:
    """The class of Transformers that the adapter fits, by the base's config; None where that is not at hand."""
    from transformers import AutoConfig  # noqa: PLC0415  # seconds, and only for a card

    from gpart.assets.fetching import gguf, resolve  # noqa: PLC0415

    try:
        place, file = gguf(resolve(base))
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, **file)
        kind, labels = choose(config, Needs.of(manifest, tensors), None, base)
    except (OSError, ValueError):
        return None
    return str(kind.__name__), labels


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(
        [
            "| | |",
            "| --- | --- |",
            *(f"| {_plain(key)} | {_code(value.replace('|', chr(92) + '|'))} |" for key, value in rows.items()),
        ]
    )


def last_part(place: str) -> str:
    """The last part of a folder's name: what lies above is nobody's affair."""
    prefix, path = ("timm:", place[5:]) if place.startswith("timm:") else ("", place)
    return prefix + (Path(path).resolve().name if Path(path).exists() or Path(path).is_absolute() else path)


def _plain(text: str) -> str:
    """Text in one line without what Markdown, HTML or a string of Python would read."""
    return re.sub(r"[<>`|\"\\\[\]]", " ", " ".join(text.split()))


def _code(text: str) -> str:
    """Text in one line as code."""
    return f"`{' '.join(text.split()).replace('`', ' ')}`"
