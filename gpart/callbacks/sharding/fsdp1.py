"""FSDP 1 (``FSDPStrategy``): the frozen base in flat shards, what is trained whole on every rank, one file for all.

Invariants: FSDP manages frozen parameters only; theta and ``modules_to_save`` are its ignored parameters, begin with rank
0's values, and each gradient that reaches them is averaged over the ranks first, so that they stay the same on all. No
state_dict gathers the base, since nobody writes it: one rank can ask for its keys without the others.

torch asks for FSDP2 where there is a choice (``fully_shard``); this is for the projects that have not moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from gpart.callbacks.sharding.one_file import OneFile, become
from gpart.errors import GPartError
from gpart.injection.names import named_parameters

_INSIDE = "_fsdp_wrapped_module."
_ROOT = "_gpart_fsdp_root"


def prepare(strategy: FSDPStrategy) -> None:
    """Makes the strategy one that leaves the trained parameters whole, and writes and reads single files.

    Raises:
        GPartError: if it puts flat weights in the place of the named ones.
    """
    if not strategy.kwargs.get("use_orig_params"):
        raise GPartError(
            f"FSDPStrategy has use_orig_params={strategy.kwargs.get('use_orig_params')}, which puts flat weights in the"
            " place of those that are adapted: leave it out (Lightning's default is True)"
        )
    become(strategy, OneFileFSDPStrategy)


if TYPE_CHECKING:
    _FSDPStrategy = FSDPStrategy
else:
    _FSDPStrategy = object  # see OneFile


class OneFileFSDPStrategy(OneFile, _FSDPStrategy):
    """Adds the trained parameters to those that FSDP ignores, wherever it wraps, and averages their gradients."""

    def _ignore(self) -> list[nn.Parameter]:
        module = self.lightning_module
        trained = [value for value in module.parameters() if value.requires_grad] if module is not None else []
        given = [*(self.kwargs.get("ignored_states") or ()), *(self.kwargs.pop("ignored_modules", None) or ())]
        # FSDP takes a list of parameters or one of modules.
        asked = [value for item in given for value in (item.parameters() if isinstance(item, nn.Module) else [item])]
        self.kwargs["ignored_states"] = list({id(value): value for value in [*asked, *trained]}.values())
        return trained

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Lets ``wrap()`` in ``configure_model`` leave what is trained whole."""
        self._ignore()
        with super().model_sharded_context():
            yield

    def _setup_model(self, model: nn.Module) -> nn.Module:
        # Every stage comes by here; a second wrapper would take the first one's shards for whole weights.
        if isinstance(root := model.__dict__.get(_ROOT), nn.Module):
            return root
        trained = self._ignore()
        if meta := [name for name, value in model.named_parameters() if value.is_meta]:
            raise GPartError(
                f"{meta[:3]} are on the meta device: under FSDPStrategy load the weights first, or take FSDP2"
            )
        for value in self.kwargs["ignored_states"]:
            value.data = value.data.to(self.root_device)  # FSDP moves what it manages only
        wrapped = super()._setup_model(model)
        _check_wrapping(wrapped, model, trained)
        for value in trained:
            torch.distributed.broadcast(value.detach(), 0)
            value.register_hook(_averaged)  # type: ignore[no-untyped-call]  # torch has no types here
        for part in model.modules():
            if isinstance(part, FullyShardedDataParallel):
                _let_shards_be(part)
        model.__dict__[_ROOT] = wrapped  # not as a submodule
        return wrapped


def _averaged(grad: Tensor) -> Tensor:
    """The mean of the ranks' gradients: a tensor's hook runs before the gradient is added to what has accumulated."""
    total = grad.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total.div_(torch.distributed.get_world_size())


def _check_wrapping(wrapped: nn.Module, model: nn.Module, trained: list[nn.Parameter]) -> None:
    parts = FullyShardedDataParallel.fsdp_modules(wrapped)
    managed = {
        id(value) for part in parts if part._handle is not None for value in part._handle.flat_param._params or ()
    }
    named = {id(value): name for name, value in named_parameters(model).items()}
    if found := [named[id(value)] for value in trained if id(value) in managed]:
        raise GPartError(
            f"{found[:3]} are trained and were sharded in configure_model: give wrap(..., ignored_states=[...]) all that"
            " requires a gradient, or build the network in __init__, or leave the wrapping to FSDPStrategy"
        )


def _let_shards_be(part: FullyShardedDataParallel) -> None:
    """Puts two hooks that only rename in the place of FSDP's, which gather the base by all ranks at once.

    The state_dict then has the plain names; what is frozen stands in it as this rank's flat shard.
    """
    hooks = (
        part._state_dict_hooks, part._state_dict_pre_hooks, part._load_state_dict_pre_hooks,
        part._load_state_dict_post_hooks,
    )  # fmt: skip
    for own in hooks:
        own.clear()
    part._register_state_dict_hook(_to_plain_names)  # type: ignore[no-untyped-call]  # torch has no types here
    part._register_load_state_dict_pre_hook(_to_wrapped_names)  # type: ignore[no-untyped-call]  # the same


def _to_plain_names(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    inside = prefix + _INSIDE
    for key in [key for key in state if key.startswith(inside)]:
        state[prefix + key[len(inside) :]] = state.pop(key)


def _to_wrapped_names(state: dict[str, Any], prefix: str, *_given: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + _INSIDE + key[len(prefix) :]] = state.pop(key)
