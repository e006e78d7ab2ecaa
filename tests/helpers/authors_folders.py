"""Folders as the paper's own code writes them, from the facts in ``shared/authors.md``, sharing no line with gpart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

THETA = "base_model.gpart_theta_d"
CONFIG: dict[str, Any] = {
    "assignment_backend": "stateless",
    "auto_mapping": None,
    "base_model_name_or_path": "some/base",
    "bias": "none",
    "d": 23,
    "fan_in_fan_out": False,
    "gpart_dropout": 0.1,
    "grouping_strategy": "random",
    "inference_mode": True,
    "init_bound": 0.0,
    "isometric": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "modules_to_save": ["classifier", "classifier", "score"],
    "partition_scope": "global",
    "peft_type": "GPART",
    "peft_version": "0.19.0",
    "proj_seed": 42,
    "projection_type": "partition",
    "revision": None,
    "target_modules": ["value", "query"],
    "task_type": "SEQ_CLS",
}


def write_theirs(folder: Path, saved: dict[str, Tensor], without: tuple[str, ...] = (), **changed: Any) -> Path:
    """A folder with a theta of its own.

    Args:
        folder: is made.
        saved: the tensors of modules_to_save by their names in the model.
        without: keys of the config that are left out.
        changed: other values of the config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in {**CONFIG, **changed}.items() if key not in without}
    tensors = {THETA: torch.linspace(-1, 1, config.get("d", 23))}
    tensors |= {f"base_model.model.{name}": value for name, value in saved.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    return folder
