"""Strategies and callbacks of Lightning with which a method can't work, and what to use in their place.

Invariant: what would lose what is trained, or train what is not saved, is refused in setup and not found afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelPruning
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import nn

from gpart.callbacks.guards.averages import COPYING
from gpart.callbacks.packages import is_a
from gpart.errors import GPartError

SHARDING = (ModelParallelStrategy, FSDPStrategy)
"""Strategies under which the base lies in parts on the ranks."""


def strategy_name(strategy: Strategy) -> str:
    """The strategy's class, as the user knows it: while it trains, a sharding one is of a subclass of ours."""
    ours = "gpart.callbacks.sharding"
    return next(kind.__name__ for kind in type(strategy).__mro__ if not kind.__module__.startswith(ours))


def check_strategy(trainer: Trainer) -> None:
    """Refuses the strategies under which checkpoints or the trained numbers would be wrong without a word.

    Raises:
        GPartError: for spawned processes and for strategies that save past the checkpoint plugin.
    """
    strategy = trainer.strategy
    if (method := getattr(strategy, "_start_method", None)) in ("spawn", "forkserver"):
        raise GPartError(
            f"strategy 'ddp_{method}' is not supported: the processes attach copies of their own, and the parent, which"
            " reads what was trained without strictness, would go on without theta; use strategy 'ddp', or 'ddp_fork' or"
            " 'ddp_notebook' with an adapter that is attached before fit"
        )
    if is_a(strategy, DeepSpeedStrategy):
        raise GPartError(
            f"{type(strategy).__name__} is not supported: in half precision DeepSpeed casts theta too, which has to stay"
            " float32, and it saves past the checkpoint plugin. Stage 2 would split what is trained, which is small: use"
            " 'ddp'; instead of stage 3 use 'fsdp', or ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1)"
        )


def check_callbacks(callbacks: Iterable[Callback], strategy: Strategy) -> None:
    """Refuses, under strategies that shard, the callbacks that average a copy.

    Raises:
        GPartError: if there is one.
    """
    if is_a(strategy, *SHARDING) and (copying := [one for one in callbacks if is_a(one, *COPYING)]):
        raise GPartError(
            f"{type(copying[0]).__name__} is not supported under {strategy_name(strategy)}: its copy of the module is made"
            " before the base is sharded, and has other shapes. Use strategy 'ddp'"
        )


def refuse_pruning(callbacks: Iterable[Callback], method: str, network: nn.Module) -> None:
    """Refuses ModelPruning of what is in the adapted network, or of all; what lies outside may be pruned.

    Raises:
        GPartError: if so, with the layer.
    """
    inside = {id(module): path for path, module in network.named_modules()}
    for pruning in callbacks:
        if not is_a(pruning, ModelPruning):
            continue
        pruned = list(pruning._parameters_to_prune or ())
        found = [f"{inside[id(module)]}.{name}".lstrip(".") for module, name in pruned if id(module) in inside]
        if pruned and not found:
            continue
        raise GPartError(
            f"ModelPruning is not supported beside {method} of {found[0] if found else 'all layers'}: it puts other parameters"
            f" in the place of those that are adapted and saved in {type(network).__name__}. Prune the base before (and"
            " torch.nn.utils.prune.remove), or the merged network afterwards (merge_and_unload); or name what is outside by"
            " parameters_to_prune"
        )


def refuse_merging(strategy: Strategy, at_end: bool) -> None:
    """Refuses merged checkpoints, and merging when fit ends, where this process has not the whole module at that moment.

    Raises:
        GPartError: under strategies that shard; for merging at the end, in forked processes.
    """
    forks = at_end and getattr(strategy, "_start_method", None) == "fork"
    if isinstance(strategy, SHARDING) or forks:
        asked = "merge_at_end=True" if at_end else "checkpoints='merged'"
        raise GPartError(
            f"{asked} is not supported under {strategy_name(strategy)}: no process has the whole merged module that the caller"
            " gets. Leave it out, and merge afterwards (load_adapter, merge_and_unload)"
        )
