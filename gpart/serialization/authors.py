"""The adapter folders of the paper's own code, read and written: PEFT's layout, ``peft_type`` GPART.

Invariant: what is read is applied by the map that it was trained with, or it is an error. Theirs names neither D nor the
adapted weights nor the base and has no checksum, so the order and the base cannot be checked; what decides the map and is
not known here is refused by its name.

``adapter_model.safetensors`` holds ``base_model.gpart_theta_d``, shape (d,), and ``base_model.model.<path>`` for each tensor
of ``modules_to_save``. Of ``adapter_config.json`` these keys are read; PEFT's others say nothing about the map:

==================================== =================================================================================
key                                  what becomes of it
==================================== =================================================================================
d, isometric                         the same; isometric is true where it is absent
proj_seed                            ``seed``; 42 where it is absent
assignment_backend                   ``projection``: stateless or implicit_stateless_v1, materialized or legacy_streaming
target_modules, exclude_modules      the same; a list, which theirs is saved from a set, in alphabetical order
modules_to_save                      those whose tensors are there, each once: theirs has names twice, and of other models
bias                                 none; all and gpart_only both are ``all``
gpart_dropout                        ``dropout``
fan_in_fan_out                       nothing: each weight is joined as it is stored
grouping_strategy, projection_type,  only random, partition and global; and no layers_to_transform, whose meaning for names
partition_scope, layers_to_transform with two numbers in them differs between PEFT's releases
==================================== =================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from gpart.config import GPartConfig, Projection
from gpart.errors import GPartError, GPartFileError
from gpart.serialization.folder import AUTHORS, CONFIG, TENSORS, adapter_place, config_of
from gpart.serialization.locations import inside, is_file, located, read, write
from gpart.serialization.sources import read_adapter

Backend = Literal["stateless", "materialized"]

_THETA, _SAVED = "base_model.gpart_theta_d", "base_model.model."
_PROJECTIONS: dict[str, Projection] = {
    "stateless": "authors-stateless",
    "implicit_stateless_v1": "authors-stateless",
    "materialized": "authors-materialized",
    "legacy_streaming": "authors-materialized",
}
_ONLY = {
    "grouping_strategy": ("random", "its groups come from the base weights' values, which are not in the file"),
    "projection_type": ("partition", "its signs, Gaussians and permutations are streams of torch's generators"),
    "partition_scope": ("global", "it cuts each transformer block by itself"),
}
"""Settings of which one value is read, and why the others are not."""


def read_authors(folder: str | PathLike[str], backend: Backend | None = None) -> tuple[GPartConfig, dict[str, Tensor]]:
    """What the paper's own code wrote into a folder.

    Args:
        folder: a path, or a URL that fsspec knows.
        backend: the map, where the folder names none, as those written before 2026-07-22: ``"materialized"`` from
            2026-06-08 on. Older ones hold a cut of a random permutation, which is not read.

    Returns:
        The settings; and the tensors by their names in a folder of ours, theta as ``gpart.default.theta``.

    Raises:
        GPartFileError: if there is no such folder, or a file is missing in it.
        GPartError: if a file cannot be read, is not theirs, has a setting that is not read here, or names no backend.
    """
    described, content, source = _read(folder)
    if described.get("peft_type") != AUTHORS:
        raise GPartError(
            f"{source} is no folder of the paper's own code: its peft_type is {described.get('peft_type')!r}, not {AUTHORS!r}"
        )
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise GPartError(f"{source}/{TENSORS} is no safetensors file: {error}") from None
    theta = tensors.pop(_THETA, None)
    if strange := sorted(key for key in tensors if not key.startswith(_SAVED)):
        raise GPartError(f"{source}: {strange[:3]} are no tensors of {_THETA!r} or below {_SAVED!r}")
    if theta is None:
        raise GPartError(f"{source} has no tensor {_THETA!r}; there are {sorted(tensors)[:5]}")
    saved = {key[len(_SAVED) :]: value for key, value in tensors.items()}
    config = _config(described, saved, backend, source)
    if tuple(theta.shape) != (config.d,):
        raise GPartError(f"{source}: {_THETA} has shape {list(theta.shape)}, its d is {config.d}")
    return config, {"gpart.default.theta": theta, **saved}


def base_of_authors(folder: str | PathLike[str]) -> str | None:
    """The name that a folder of theirs has for its base, if it has one."""
    described, _, _ = _read(folder)
    base = described.get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def write_authors(
    folder: str | PathLike[str],
    config: GPartConfig,
    tensors: Mapping[str, Tensor],
    name: str = "default",
    base: str | None = None,
) -> None:
    """Writes a folder that the paper's own code reads.

    Args:
        folder: a path, or a URL that fsspec knows; is made where it is missing.
        config: of projection ``"authors-stateless"`` or ``"authors-materialized"``.
        tensors: theta and those of ``modules_to_save``, by their names in a folder of ours.
        name: the adapter's, which stands in theta's name.
        base: the name of the base, if it is known.

    Raises:
        GPartError: if theirs cannot say what the config says, or theta is not float32.
    """
    backend = next((key for key, value in _PROJECTIONS.items() if value == config.projection), None)
    if backend is None:
        raise GPartError(
            f"the paper's own code has no map of projection={config.projection!r}: its groups are other ones. Train with"
            " projection='authors-stateless' for an adapter that it reads"
        )
    for field in ("slices", "target_parameters", "exclude_modules"):
        if (value := getattr(config, field)) is not None:
            raise GPartError(f"the paper's own code has no setting for {field}={value!r}")
    key = f"gpart.{name}.theta"
    if key not in tensors:
        raise GPartError(f"there is no tensor {key!r}; there are {sorted(tensors)[:5]}")
    if tensors[key].dtype != torch.float32:
        raise GPartError(f"the paper's own code holds theta in float32, {key} is {tensors[key].dtype}")
    described = {
        "assignment_backend": backend,
        "base_model_name_or_path": base,
        "bias": config.bias,
        "d": config.d,
        "fan_in_fan_out": False,
        "gpart_dropout": config.dropout,
        "grouping_strategy": "random",
        "inference_mode": True,
        "isometric": config.isometric,
        "layers_pattern": None,
        "layers_to_transform": None,
        "modules_to_save": config.modules_to_save,
        "partition_scope": "global",
        "peft_type": AUTHORS,
        "proj_seed": config.seed,
        "projection_type": "partition",
        "target_modules": config.target_modules,
        "task_type": None,
    }
    named = {_THETA if each == key else _SAVED + each: value for each, value in tensors.items()}
    content = dump_tensors({each: value.cpu().contiguous().clone() for each, value in named.items()}, {"format": "pt"})
    text = json.dumps(described, indent=2, sort_keys=True)
    write(located(folder), {TENSORS: content, CONFIG: text.encode()})


def export_authors(source: str | PathLike[str], out: str | PathLike[str]) -> None:
    """Writes an adapter of ours as a folder that the paper's own code reads.

    Args:
        source: whatever :func:`gpart.serialization.sources.read_adapter` takes.
        out: the folder.

    Raises:
        GPartFileError: if there is no such adapter.
        GPartError: if theirs cannot hold it: its groups are not theirs, or its vector has not all of a weight.
    """
    manifest, tensors = read_adapter(source)
    if left := [weight[0] for weight in manifest.weights if len(weight) > 2]:
        raise GPartError(f"{source} leaves out the row of padding_idx of {left}, which the paper's own code does not")
    try:
        write_authors(out, manifest.config, tensors, manifest.name, manifest.about.base)
    except GPartError as error:
        raise type(error)(f"{source} cannot be exported: {error}") from None


def _read(folder: str | PathLike[str]) -> tuple[dict[str, Any], bytes, str]:
    at = adapter_place(folder)
    if not is_file(inside(at, TENSORS)):
        raise GPartFileError(f"no adapter at {at}: there is no file {TENSORS}")
    return config_of(at)[1], read(inside(at, TENSORS)), str(at)


def _config(
    described: Mapping[str, Any], saved: Mapping[str, Tensor], backend: Backend | None, source: str
) -> GPartConfig:
    for key, (only, why) in _ONLY.items():
        if (value := described.get(key, only)) != only:
            raise GPartError(f"{source} has {key}={value!r}, which is not read here, only {only!r}: {why}")
    for key in ("layers_to_transform", "layers_pattern"):
        if value := described.get(key):
            raise GPartError(
                f"{source} has {key}={value!r}, which is not read here: the layers that it means differ between PEFT's"
                " releases where a name has two numbers. Name them in target_modules"
            )
    bias = described.get("bias", "none")
    if "d" not in described:
        raise GPartError(f"{source} has no d; its keys are {sorted(described)}")
    try:
        return GPartConfig(
            d=described["d"],
            target_modules=_sorted(described.get("target_modules")),
            modules_to_save=_saved_modules(described.get("modules_to_save"), saved, source),
            seed=described.get("proj_seed", 42),
            exclude_modules=_sorted(described.get("exclude_modules")) or None,
            bias="all" if bias == "gpart_only" else bias,
            dropout=described.get("gpart_dropout", 0.0),
            isometric=described.get("isometric", True),
            projection=_projection(described.get("assignment_backend"), backend, source),
        )
    except GPartError as error:
        said = str(error)
        raise GPartError(said if said.startswith(source) else f"{source}: {said}") from None


def _projection(named: Any, backend: str | None, source: str) -> Projection:
    if backend is not None and backend not in ("stateless", "materialized"):
        raise GPartError(f"backend must be 'stateless' or 'materialized', got {backend!r}")
    asked = None if backend is None else _PROJECTIONS[backend]
    if named is None:
        if asked is None:
            raise GPartError(
                f"{source} names no assignment_backend, so its groups are not known: say backend='materialized' if it was"
                " written between 2026-06-08 and 2026-07-22, backend='stateless' if you know that it is that. Older ones"
                " hold a cut of a random permutation, which is not read"
            )
        return asked
    found = _PROJECTIONS.get(named) if isinstance(named, str) else None
    if found is None:
        raise GPartError(f"{source} has assignment_backend={named!r}; known are {sorted(_PROJECTIONS)}")
    if asked is not None and asked != found:
        raise GPartError(f"{source} has assignment_backend={named!r}, and backend={backend!r} was given")
    return found


def _sorted(names: Any) -> Any:
    """A list, which was a set, in an order that is always the same; anything else is left for the config to judge."""
    return sorted(set(names)) if isinstance(names, list) and all(isinstance(name, str) for name in names) else names


def _saved_modules(names: Any, saved: Mapping[str, Tensor], source: str) -> list[str] | None:
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) and name for name in names)):
        raise GPartError(f"{source}: modules_to_save must be a list of names, got {names!r}")
    found = [name for name in dict.fromkeys(names or []) if any(_below(key, name) for key in saved)]
    if strange := sorted(key for key in saved if not any(_below(key, name) for name in found)):
        raise GPartError(f"{source} holds {strange[:3]}, which are of no module of modules_to_save={names!r}")
    return found or None


def _below(key: str, module: str) -> bool:
    """Whether a tensor is one of a module's whose name is, or ends in, this one."""
    return f".{module}." in f".{key}"
