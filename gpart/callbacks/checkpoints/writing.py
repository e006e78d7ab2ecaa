"""What a checkpoint holds of a module of which only a part is trained, when it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from gpart.adapters import active_adapters, chosen_heads
from gpart.callbacks.checkpoints.contents import AdapterContents
from gpart.callbacks.checkpoints.filling import HINT, Parts, adapters_in, frozen_tensors
from gpart.callbacks.checkpoints.live import entries, named_by, plain_state
from gpart.callbacks.checkpoints.plain_objects import with_plain_network
from gpart.callbacks.checkpoints.states import with_states
from gpart.injection.names import get_submodule, named_parameters, plain_name
from gpart.injection.tensors import entries_of
from gpart.serialization.checkpoint_file import CHECKPOINT_KEY, NETWORKS, SEVERAL, state_digest, within


def written(checkpoint: dict[str, Any], module: LightningModule, parts: Parts) -> dict[str, Any]:
    """A checkpoint of Lightning without the frozen parameters, with the adapter's entry; by plain names.

    Where the contents are to be merged, its state is a plain module's: W0 + P·theta under the plain names, and the
    adapter's own tensors lie in its entry.
    """
    named = named_by(module)
    frozen = entries(named, frozen_tensors(module, parts))

    def kept(state: Mapping[str, Any]) -> dict[str, Any]:
        return {plain_name(key): value for key, value in state.items() if key not in frozen}

    if "state_dict" not in checkpoint:  # a module's bare state, which forked processes hand to their parent
        return kept(checkpoint)
    whole = checkpoint["state_dict"]
    checkpoint = with_states(checkpoint, kept)
    state = checkpoint["state_dict"]
    own: dict[str, Tensor] = {}  # several keys where theta stands in a module that is shared
    for contents in parts.values():
        found = entries(named, contents.own())
        own |= found
        if not found:  # the state of a merged module is a plain one's
            state |= {name: one.detach() for name, one in entries_of(named_parameters(module), contents.own()).items()}
    if len(every := adapters_in(parts)) > 1:
        models = {path: one.adapter.model for path, one in every}
        active = {path: {"active": active_adapters(one), "heads": chosen_heads(one)} for path, one in models.items()}
        checkpoint[CHECKPOINT_KEY] = {
            SEVERAL: [_entry_of(one, path, within(path, state)) for path, one in every],
            **(next(iter(active.values())) if len(active) == 1 else {NETWORKS: active}),
            "hint": HINT,
            "sha256": state_digest(state),
        }
        checkpoint["state_dict"] = {**state, HINT: torch.empty(0)}
        return checkpoint
    ((path, contents),) = parts.items()
    inside = within(path, state)
    entry = {"module": path, "copies": list(contents.copies), "manifest": contents.manifest(), "hint": HINT}
    merged = contents.merged(inside)
    if merged is None:
        checkpoint[CHECKPOINT_KEY] = {**entry, "sha256": state_digest(state)}
        checkpoint["state_dict"] = {**state, HINT: torch.empty(0)}
        return checkpoint
    names = {id(value): name for name, value in plain_state(get_submodule(module, path)).items() if name in merged}
    plain: dict[str, Tensor] = {}
    for key, value in whole.items():
        if key in frozen:
            plain[plain_name(key)] = merged[names[id(frozen[key])]].detach()
        elif key not in own:
            plain[plain_name(key)] = value
    checkpoint = with_plain_network(checkpoint, get_submodule(module, path))
    checkpoint["state_dict"] = plain
    checkpoint[CHECKPOINT_KEY] = {**entry, "sha256": state_digest(inside), "tensors": inside}
    return checkpoint


def _entry_of(contents: AdapterContents, path: str, inside: Mapping[str, Tensor]) -> dict[str, Any]:
    """The entry of one of several adapters, with its own tensors: what shares memory is stored once in a file."""
    tensors = contents.tensors(inside)
    return {
        "module": path,
        "copies": list(contents.copies),
        "manifest": contents.manifest(),
        "tensors": tensors,
        "sha256": state_digest(tensors),
    }
