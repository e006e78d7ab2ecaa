"""The forgotten head: parameters that would be frozen though Transformers has just initialised them at random."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from gpart.injection.names import get_parameter, named_modules


def randomly_initialised(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Which of these parameters Transformers has just initialised at random, because the checkpoint had none.

    ``from_pretrained`` marks every parameter that it loads with ``_is_hf_initialized`` (transformers/modeling_utils.py,
    ``_initialize_missing_keys``). A model built by ``from_config`` has no marks, and none of its parameters is listed.
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
    return [name for name in names if name in missing]
