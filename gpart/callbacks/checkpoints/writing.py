"""What a checkpoint holds of a module of which only a part is trained, when it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from gpart.adapters import active_adapters, chosen_heads
from gpart.callbacks.checkpoints.contents import AdapterContents
from gpart.callbacks.checkpoints.filling import HINT, Contents, frozen_tensors
from gpart.callbacks.checkpoints.live import entries, named_by, plain_state
from gpart.callbacks.checkpoints.plain_objects import with_plain_network
from gpart.callbacks.checkpoints.states import with_states
from gpart.injection.names import get_submodule, named_parameters, plain_name
from gpart.injection.tensors import entries_of
from gpart.serialization.checkpoint_file import CHECKPOINT_KEY, SEVERAL, state_digest


def written(checkpoint: dict[str, Any], module: LightningModule, path: str, contents: Contents) -> dict[str, Any]:
    """A checkpoint of Lightning without the frozen parameters, with the adapter's entry; by plain names.

    Where the contents are to be merged, its state is a plain module's: W0 + P·theta under the plain names, and the
    adapter's own tensors lie in its entry.
    """
    named = named_by(module)
    frozen = entries(named, frozen_tensors(module, path, contents))

    def kept(state: Mapping[str, Any]) -> dict[str, Any]:
        return {plain_name(key): value for key, value in state.items() if key not in frozen}

    if "state_dict" not in checkpoint:  # a module's bare state, which forked processes hand to their parent
        return kept(checkpoint)
    whole = checkpoint["state_dict"]
    checkpoint = with_states(checkpoint, kept)
    state = checkpoint["state_dict"]
    own = entries(named, contents.own())  # several keys where theta stands in a module that is shared
    if not own:  # the state of a merged module is a plain one's
        state |= {name: one.detach() for name, one in entries_of(named_parameters(module), contents.own()).items()}
    prefix = f"{path}." if path else ""
    inside = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if isinstance(contents, AdapterContents) and len(every := contents.each()) > 1:
        checkpoint[CHECKPOINT_KEY] = {
            SEVERAL: [_entry_of(one, path, inside) for one in every],
            "active": active_adapters(contents.adapter.model),
            "heads": chosen_heads(contents.adapter.model),
            "hint": HINT,
            "sha256": state_digest(state),
        }
        checkpoint["state_dict"] = {**state, HINT: torch.empty(0)}
        return checkpoint
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
