"""FSDP2 (``ModelParallelStrategy`` and ``fully_shard``): the base sharded, theta whole on every rank, one file for all.

Invariants: theta is the same on every rank at every step, since its gradient is averaged over them; a checkpoint is the
one file that a single process would have written, put together by all ranks, so that it loads on any number of them.

The adapter is attached before ``fully_shard`` sees the network (afterwards torch would look for the weights where they no
longer are). Theta is then kept out of the sharding, and made a replicated DTensor, because torch's clipping and optimizers
refuse lists that mix DTensors and plain tensors. The layers compute with its local tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from gpart.adapter import GPartAdapter
from gpart.callbacks.sharding.one_file import OneFile, become
from gpart.errors import GPartError
from gpart.injection.modules import Theta
from gpart.injection.tensors import whole


def prepare(strategy: ModelParallelStrategy) -> None:
    """Makes the strategy one that writes and reads single files.

    Raises:
        GPartError: if it would split layers (tensor parallelism).
    """
    if strategy._tensor_parallel_size != 1:
        raise GPartError(
            f"ModelParallelStrategy has tensor_parallel_size={strategy._tensor_parallel_size} (its default on one node is"
            " the number of devices), and an adapted layer needs its weight whole: give data_parallel_size="
            f"{strategy.world_size} and tensor_parallel_size=1"
        )
    become(strategy, OneFileModelParallelStrategy)


def after_sharding(adapter: GPartAdapter, mesh: DeviceMesh) -> None:
    """Makes theta a replicated DTensor whose gradient is averaged over the ranks; once.

    Raises:
        GPartError: if it was sharded.
    """
    if not adapter.remembers_base and not any(value.is_meta for value in adapter.base_parameters().values()):
        adapter.remember_base()
    holder = adapter._holder()
    if isinstance(holder.plain, _Replicated):
        return
    if isinstance(holder.theta, DTensor):
        raise GPartError("fully_shard has sharded theta too: give it ignored_params={adapter.theta}")
    replicated = _Replicated(holder, mesh)
    holder.theta = nn.Parameter(replicated.wrapped(holder.theta.detach()), requires_grad=holder.theta.requires_grad)
    holder.plain = replicated


def check_reduced(module: nn.Module, ranks: int) -> None:
    """Checks that every trained parameter's gradient is reduced over the ranks, by ``fully_shard`` or as theta's.

    Raises:
        GPartError: if one is a plain tensor, which each rank would train by itself.
    """
    own = [name for name, value in module.named_parameters() if value.requires_grad and not isinstance(value, DTensor)]
    if own and ranks > 1:
        raise GPartError(
            f"{own[:3]} are trained and not sharded, so that each of the {ranks} ranks would train its own: let"
            " configure_model call fully_shard on the module that holds them too, such as the whole network"
        )


class _Replicated:
    """Gives the layers a plain tensor that shares theta's memory, and hands its averaged gradient to theta."""

    def __init__(self, holder: Theta, mesh: DeviceMesh) -> None:
        self._holder, self._mesh = holder, mesh
        self._leaf: Tensor | None = None

    def __call__(self, theta: nn.Parameter) -> Tensor:
        local = theta._local_tensor if isinstance(theta, DTensor) else theta  # to_local() would add to the graph
        leaf = self._leaf
        if leaf is None or _place(leaf) != _place(local):
            with torch.inference_mode(mode=False):
                leaf = self._leaf = local.detach().requires_grad_(theta.requires_grad)
                leaf.register_post_accumulate_grad_hook(self._average)  # type: ignore[no-untyped-call]  # torch's
        return leaf

    def wrapped(self, value: Tensor) -> DTensor:
        """A tensor that is the same on every rank, as a DTensor."""
        return DTensor.from_local(value, self._mesh, [Replicate()] * self._mesh.ndim, run_check=False)

    def _average(self, leaf: Tensor) -> None:
        if leaf.grad is None:
            return
        grad, leaf.grad = leaf.grad, None
        torch.distributed.all_reduce(grad, group=self._mesh.get_group())
        average = self.wrapped(grad.div_(self._mesh.size()))
        theta = self._holder.theta
        theta.grad = average if theta.grad is None else theta.grad + average


def _place(value: Tensor) -> tuple[int, torch.dtype, torch.device]:
    return value.data_ptr(), value.dtype, value.device


if TYPE_CHECKING:
    _ModelParallelStrategy = ModelParallelStrategy
else:
    _ModelParallelStrategy = object  # see OneFile


class OneFileModelParallelStrategy(OneFile, _ModelParallelStrategy):
    """Gathers what is trained, by all ranks, and deals out what is read."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is trained, put together by all ranks."""
        return {key: _gathered(value) for key, value in super().lightning_module_state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's state, the same way."""
        state: dict[str, Any] = tree_map(_gathered, super().optimizer_state(optimizer))
        return state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Deals out what was put together."""
        module = self.lightning_module
        live = module.state_dict() if module is not None else {}
        state = {key: _placed(value, live.get(key)) for key, value in checkpoint["state_dict"].items()}
        super().load_model_state_dict({**checkpoint, "state_dict": state}, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """The optimizers' states, the same way."""
        for optimizer, complete in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbered = dict(enumerate(value for group in optimizer.param_groups for value in group["params"]))
            state = {
                number: {name: _placed(value, numbered[number]) for name, value in values.items()}
                for number, values in complete["state"].items()
            }
            optimizer.load_state_dict({**complete, "state": state})


def _gathered(value: Any) -> Any:
    return whole(value.detach()).cpu() if isinstance(value, Tensor) else value


def _placed(value: Any, live: Any) -> Any:
    """A whole tensor, laid out as a live one of its shape is."""
    if (
        not isinstance(live, DTensor)
        or not isinstance(value, Tensor)
        or isinstance(value, DTensor)
        or value.shape != live.shape
    ):
        return value
    return distribute_tensor(value.to(live.device), live.device_mesh, live.placements)
