"""The folders of what the baselines and PEFT's methods train: written when fit ends, and read onto a network again.

Invariant: a network that reads such a folder has the bits that were trained, or is refused and left as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from gpart.callbacks.checkpoints.contents import TrainedContents
from gpart.callbacks.checkpoints.live import plain_state
from gpart.callbacks.told import about_run
from gpart.errors import GPartError, GPartFileError
from gpart.injection.facts import facts_of
from gpart.injection.matching import saved_parameters
from gpart.injection.names import named_modules
from gpart.injection.tensors import same_bits
from gpart.serialization.about import About
from gpart.serialization.folder import CONFIG, TENSORS, read_trained, write_trained
from gpart.serialization.locations import inside, is_file, located, read, write
from gpart.serialization.manifest import written_by

WRAPPED = "base_model.model."
"""How PEFT's names of parameters begin."""
UNLIKE = ("base_model_name_or_path", "inference_mode", "modules_to_save", "task_type", "revision", "peft_version")
"""Fields of PEFT's configs that say nothing of the method."""


def write_method(
    trainer: Trainer,
    module: LightningModule,
    contents: TrainedContents,
    folder: str,
    tensors: Mapping[str, Tensor],
    score: Mapping[str, Any],
) -> None:
    """Writes what a baseline has trained, with its manifest."""
    about = about_run(trainer, module, About(**facts_of(contents.model)))
    described = {**contents.manifest(), "versions": written_by(), "about": {**about.to_dict(), "score": dict(score)}}
    write_trained(folder, described, tensors)


def read_method(contents: TrainedContents, folder: str) -> None:
    """Puts what :func:`write_method` wrote into a network that the method was applied to.

    Raises:
        GPartError: if it was trained by another method, with other settings or on another base, or has other tensors; with
            both values.
    """
    described, tensors = read_trained(folder)
    contents.check(described, tensors, folder)
    put(plain_state(contents.model), tensors)


@torch.no_grad()
def put(live: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Copies values into a network's parameters and buffers."""
    for name, value in tensors.items():
        live[name].copy_(value)


def tuner_layers(network: nn.Module) -> list[str]:
    """The paths of the layers that PEFT has put into a network."""
    return [path for path, module in network.named_modules() if isinstance(module, BaseTunerLayer)]


def write_peft(
    model: PeftModel, heads: list[str], folder: str, tensors: Mapping[str, Tensor], first: Mapping[str, Tensor]
) -> None:
    """Writes PEFT's own folder, which ``peft.PeftModel.from_pretrained`` reads.

    Args:
        model: PEFT's wrapper.
        heads: paths of the modules that are trained in full.
        folder: a path or a URL.
        tensors: what was trained, and the buffers, by the network's names.
        first: the buffers before training; those that it left alone are not written.
    """
    network = model.get_base_model()
    # A parameter may have several names, such as VB-LoRA's bank of vectors, and PEFT may read it by another than we do.
    named = dict(model.named_parameters(remove_duplicate=False))
    given = {f"{WRAPPED}{name}": value for name, value in tensors.items()}
    values = {id(named[key]): value for key, value in given.items() if key in named}
    state = {**model.state_dict(), **given}
    state |= {key: values[id(one)] for key, one in named.items() if id(one) in values and key in state}
    held: dict[str, Tensor] = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    outermost = [path for path in heads if not any(path.startswith(f"{other}.") for other in heads)]
    # PEFT takes what ends in a name, also within a word: "classifier" means "pre_classifier" too, and then needs both.
    full = [path for path, _ in named_modules(network) if path and path.endswith(tuple(outermost))] if heads else []
    begins = tuple(f"{WRAPPED}{path}." for path in full)
    moved = [name for name, value in first.items() if name in tensors and not same_bits(tensors[name], value)]
    held |= {key: value for key, value in state.items() if key.startswith(begins)}
    held |= {f"{WRAPPED}{name}": tensors[name] for name in moved}
    config = deepcopy(model.active_peft_config)
    config.modules_to_save, config.inference_mode = outermost or None, True
    with TemporaryDirectory() as temporary:
        config.save_pretrained(temporary)
        described = (Path(temporary) / CONFIG).read_bytes()
    content = dump_tensors(
        {key: value.detach().cpu().contiguous().clone() for key, value in held.items()}, {"format": "pt"}
    )
    write(located(folder), {TENSORS: content, CONFIG: described})


def read_peft(model: PeftModel, folder: str) -> None:
    """Puts PEFT's own folder into a network that the same method was applied to.

    Raises:
        GPartFileError: if a file is missing.
        GPartError: if it is of another method or other settings, or has other tensors; with both values.
    """
    at = located(folder)
    for name in (CONFIG, TENSORS):
        if not is_file(inside(at, name)):
            raise GPartFileError(f"no adapter of PEFT at {folder}: there is no file {name}")
    with TemporaryDirectory() as temporary:
        (Path(temporary) / CONFIG).write_bytes(read(inside(at, CONFIG)))
        try:
            theirs = _settings(PeftConfig.from_pretrained(temporary))
        except (KeyError, TypeError, ValueError) as error:
            raise GPartError(f"{folder} holds no adapter of PEFT: {error}") from error
    mine = _settings(model.active_peft_config)
    if different := [
        f"{key} is {theirs.get(key)!r} there, {mine[key]!r} here" for key in mine if theirs.get(key) != mine[key]
    ]:
        raise GPartError(f"{folder} and this callback have different settings: {'; '.join(different)}")
    found = {key: value for key, value in load_tensors(read(inside(at, TENSORS))).items() if not _is_copy(key)}
    # PEFT's own names for what the method has added, which differ from the network's by method; then heads and buffers.
    added: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    live = model.state_dict()
    others = {key: name for name in live if (key := _written(name, model.active_adapter)) not in added}
    shapes = {**{key: live[name].shape for key, name in others.items()}, **{key: v.shape for key, v in added.items()}}
    unknown, missing = sorted(set(found) - set(shapes)), sorted(set(added) - set(found))
    wrong = [
        f"{key} has shape {list(value.shape)}, here {list(shapes[key])}"
        for key, value in sorted(found.items())
        if key in shapes and value.shape != shapes[key]
    ]
    if unknown or wrong or missing:
        raise GPartError(
            f"{folder}: tensors missing {missing[:3]}, too many {unknown[:3]}, of another shape {wrong[:3]}"
        )
    put(live, {others[key]: value for key, value in found.items() if key in others})
    set_peft_model_state_dict(model, {key: found[key] for key in added}, model.active_adapter)


def heads_of(network: nn.Module, modules_to_save: Any) -> list[str]:
    """The paths of what is trained in full."""
    return list(dict.fromkeys(saved_parameters(network, modules_to_save)[0]))


def _is_copy(key: str) -> bool:
    """Whether PEFT has written a head once more by the names within its wrapper, as it does with ``bias="all"``."""
    return ".modules_to_save." in key or ".original_module." in key


def _written(name: str, adapter: str) -> str:
    """A parameter's name in PEFT's files, which leave the adapter's name out."""
    return ".".join(part for part in name.split(".") if part != adapter)


def _settings(config: PeftConfig) -> dict[str, Any]:
    """What a config says of the method, as its file has it."""
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    settled: dict[str, Any] = json.loads(json.dumps(plain, default=str))
    return {key: value for key, value in settled.items() if key not in UNLIKE and key != "auto_mapping"}
