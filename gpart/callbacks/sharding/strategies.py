"""Strategies that shard the base: FSDP2 (``ModelParallelStrategy``) and FSDP 1 (``FSDPStrategy``), what both need.

Invariants: theta is whole and the same on every rank at every step; the base's fingerprint is taken before its weights are
in parts, or by all ranks together; no adapted weight is kept longer than its layer runs.
"""

from __future__ import annotations

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed._composable.contract import contract
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from gpart.adapter import GPartAdapter
from gpart.callbacks.guards.refusals import SHARDING
from gpart.callbacks.packages import is_a
from gpart.callbacks.sharding import fsdp1, fsdp2
from gpart.errors import GPartError
from gpart.injection.modules import CONTAINER


def shards(strategy: Strategy) -> bool:
    """Whether the base is sharded under this strategy."""
    return is_a(strategy, *SHARDING)


def prepare(strategy: Strategy) -> bool:
    """Lets a sharding strategy keep theta whole, and write and read single files; says whether it is one.

    Raises:
        GPartError: if it would split layers, or put weights in the place of those that are adapted.
    """
    if is_a(strategy, ModelParallelStrategy):
        fsdp2.prepare(strategy)
    elif is_a(strategy, FSDPStrategy):
        fsdp1.prepare(strategy)
    return shards(strategy)


def refuse_sharded(network: nn.Module) -> None:
    """Checks that a network that is to be adapted is not sharded yet.

    Raises:
        GPartError: if it is.
    """
    if sharded := [name for name, value in network.named_parameters() if isinstance(value, DTensor)]:
        raise GPartError(
            f"{sharded[:3]} are sharded already, and can't be adapted any more: build the network in __init__, or"
            " call gpart.attach in configure_model before fully_shard, with"
            " ignored_params={adapter.theta}"
        )
    if wrapped := [path for path, module in network.named_modules() if isinstance(module, FullyShardedDataParallel)]:
        raise GPartError(
            f"{wrapped[:3]} of {type(network).__name__} are wrapped by FSDP already, and can't be adapted any more:"
            " build the network in __init__, or leave the wrapping to FSDPStrategy(auto_wrap_policy=...), or call"
            " gpart.attach in configure_model before wrap(...), with ignored_states=[what requires a gradient]"
        )


@contract()
def replicate(module: nn.Module) -> nn.Module:
    """Marks a module as replicated; ``fully_shard`` and FSDP 1 pass over what bears a mark of this name."""
    return module


def before_sharding(adapter: GPartAdapter) -> None:
    """Keeps theta out of the sharding; once.

    Raises:
        GPartError: if the adapted weights are to be kept.
    """
    if adapter.sharded:
        return
    if adapter.memory.weights == "kept":
        raise GPartError(
            "weights='kept' keeps every adapted weight whole on every rank: under a strategy that shards take 'recomputed'"
        )
    values = adapter.base_parameters().values()
    if not any(value.is_meta or isinstance(value, DTensor) for value in values):
        adapter.remember_base()
    adapter.sharded = True
    replicate(adapter.home.get_submodule(CONTAINER))


def after_sharding(adapter: GPartAdapter, strategy: Strategy) -> None:
    """What is left to do when ``configure_model`` has run; FSDP 1 shards later, and its strategy does the rest."""
    if is_a(strategy, ModelParallelStrategy):
        fsdp2.after_sharding(adapter, strategy.device_mesh["data_parallel"])


def check_reduced(strategy: Strategy, module: LightningModule) -> None:
    """Checks that every trained parameter's gradient is reduced over the ranks; FSDP 1's strategy has seen to it.

    Raises:
        GPartError: if one is not.
    """
    if is_a(strategy, ModelParallelStrategy):
        fsdp2.check_reduced(module, strategy.world_size)


def remember_base(adapter: GPartAdapter, strategy: Strategy) -> None:
    """Takes the base's fingerprint together with all ranks, as it is when training starts; FSDP 1 has it from before."""
    if is_a(strategy, ModelParallelStrategy):
        adapter.remember_base()
