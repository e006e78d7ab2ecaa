"""Parameters that would be frozen though they are random: a head that the checkpoint lacks, rows added to an embedding."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gpart.errors import GPartError
from gpart.injection.layers import MERGE_FIRST, is_wrapped
from gpart.injection.names import get_parameter, named_modules


def randomly_initialised(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Which of these parameters Transformers has just initialised at random, because the checkpoint had none.

    ``from_pretrained`` marks every parameter that it loads with ``_is_hf_initialized`` (transformers/modeling_utils.py,
    ``_initialize_missing_keys``). A model built by ``from_config`` has no marks, and none of its parameters is listed.

    Raises:
        GPartError: if it is PEFT that has put one of them there.
    """
    names = list(names)
    missing: set[str] = set()
    for path, module in named_modules(model):
        if not hasattr(module, "from_pretrained"):
            continue
        prefix = f"{path}." if path else ""
        inside = [name for name in names if name.startswith(prefix)]
        marked = {name for name in inside if getattr(get_parameter(model, name), "_is_hf_initialized", False)}
        if marked:
            missing.update(name for name in inside if name not in marked)
    for path in (path for path, module in named_modules(model) if missing and is_wrapped(module)):
        if added := sorted(name for name in missing if name.startswith(f"{path}.")):
            raise GPartError(f"{added} are PEFT's, which wraps {path}: they would be frozen. {MERGE_FIRST}")
    return [name for name in names if name in missing]


def mark_as(value: nn.Parameter, original: Tensor) -> nn.Parameter:
    """Gives a copy of a parameter the mark of the original, if it has it; returns the copy."""
    if getattr(original, "_is_hf_initialized", False):
        value._is_hf_initialized = True  # type: ignore[attr-defined]  # Transformers' own
    return value


def resized(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Which of these parameters have rows that were added to a loaded model, with how many it was loaded with.

    ``resize_token_embeddings`` keeps the Parameter with its mark and writes the new number into the model's config, so the
    config beside the loaded weights is asked. It is only read where it lies on this machine; else nothing is listed.
    """
    names = list(names)
    found: dict[str, str] = {}
    for path, module in named_modules(model):
        if not hasattr(module, "resize_token_embeddings") or not hasattr(module, "config"):
            continue
        rows, before = _rows(module.config), _rows(_loaded_config(module.config))
        if rows is None or before is None or rows <= before:
            continue
        prefix = f"{path}." if path else ""
        tables = [module.get_input_embeddings(), module.get_output_embeddings()]  # type: ignore[operator]
        owned = {id(value) for table in tables if table is not None for value in table.parameters()}
        for name in names:
            value = get_parameter(model, name)
            if name.startswith(prefix) and id(value) in owned and value.shape[0] == rows:
                found[name] = f"{name} ({before:,} rows when it was loaded, now {rows:,})"
    return list(found.values())


def refuse_resized(model: nn.Module, names: Iterable[str], modules_to_save: list[str] | str | None) -> None:
    """Checks that nothing is frozen that has rows which were added after loading.

    Args:
        model: the module.
        names: of the parameters that would be frozen.
        modules_to_save: the setting that leaves them out, for the message.

    Raises:
        GPartError: if so, with the names and the numbers of rows.
    """
    if added := resized(model, names):
        raise GPartError(
            f"modules_to_save={modules_to_save!r} leaves out {added}: the added rows are random, would be frozen, and are"
            " in no file. Name the module in modules_to_save, or save the resized model (save_pretrained) and load it from"
            " there before it is adapted"
        )


def _loaded_config(config: Any) -> Any:
    """The config that a model was loaded with, or None."""
    source = getattr(config, "_name_or_path", "")
    if not source or (Path(source).is_dir() and not (Path(source) / "config.json").is_file()):
        return None  # a GGUF file's folder has none, and Transformers would give the class's defaults for it
    try:
        return type(config).from_pretrained(source, local_files_only=True)
    except (OSError, ValueError):  # not on this machine any more
        return None


def _rows(config: Any) -> int | None:
    try:
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
    except ValueError:  # of several texts, as MusicGen has, it does not say which is meant
        return None
    rows = getattr(text, "vocab_size", None)
    return rows if isinstance(rows, int) else None
