r"""The one door: what a layer reads as its weight, when W0 + P·theta is computed, and how long it is kept.

Invariant: the mode changes time and memory only. Within one forward pass every read of a weight gives the same numbers,
with one dropout mask.

| moment \ mode                     | kept                         | forward              | recomputed                    |
| --------------------------------- | ---------------------------- | -------------------- | ----------------------------- |
| forward pass, gradients on        | from the cache, with a graph | computed             | computed                      |
| the same, read again              | until the pass ends          | until the pass ends  | while the layer runs          |
| its backward pass                 | the cache's memory           | held by the graph    | computed again                |
| forward pass, gradients off       | from the cache               | computed             | computed                      |
| gradients off, within ``cached()``| from the cache               | from the cache       | from the cache                |
| outside every forward pass        | from the cache               | computed, not kept   | computed, not kept            |
| merged, or ``disabled()``         | what is stored, or W0, in every mode                                                |
| torch.compile                     | computed by operations that the compiler plans, in every mode                       |
| torch.func, export, tracing, ...  | computed by plain operations, nothing kept, in every mode, see ``plain``            |

The cache holds a value while theta and W0 are unchanged; with dropout, while its mask is. Where the base is sharded, a
weight is whole only while its layer runs: then nothing is kept longer.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gpart.config import GPartConfig, MemoryPolicy
from gpart.errors import GPartError
from gpart.injection.modules import theta_of
from gpart.injection.targets import AdaptedWeight, Plan
from gpart.injection.tensors import dense, is_packed
from gpart.materialize.cache import Cache, Versions, versions
from gpart.materialize.forward_scope import ForwardScope
from gpart.materialize.group_index import GroupIndex, block_sizes
from gpart.materialize.plain import is_followed, is_hollow, is_recorded
from gpart.materialize.policy import Mode, mode_of
from gpart.materialize.recompute import Recomputation
from gpart.materialize.scaling import Scaling
from gpart.ops import compiled
from gpart.ops.autograd import collected, expand, expand_plainly, put_in, scale
from gpart.ops.block import Block
from gpart.ops.dispatch import expand_into
from gpart.ops.dropout import with_dropout
from gpart.partition import Partition


class Weights:
    """The adapted weights of one adapter: what reads them is a layer's property, see :mod:`gpart.injection.modules`.

    Args:
        home: the module whose child holds theta.
        name: the adapter's.
        plan: which weights.
        config: the adapter's settings.
        memory: what is kept in memory.
    """

    def __init__(self, home: nn.Module, name: str, plan: Plan, config: GPartConfig, memory: MemoryPolicy) -> None:
        self.home, self.name, self.plan, self.config, self.memory = home, name, plan, config, memory
        self.disabled = 0
        """How many have switched the update off: ``disabled()`` may be entered by several threads at once."""
        self.bases: dict[str, Tensor] | None = None
        """W0 of every weight that was merged, while what the model computes with stands in the stored ones."""
        self.total: Any = None
        """What sums the updates of several adapters, where this is one of several active ones: gpart.materialize.several."""
        self.scaling = Scaling(config, plan.size, memory)
        self.index = GroupIndex(self.scaling.groups, memory)
        self.scope = ForwardScope(OrderedDict())
        self.cache = Cache()
        self.recomputation = Recomputation()
        self.sharded = False
        """Whether W0 is there only while its layer runs."""
        self._modes: dict[tuple[torch.device, torch.dtype], Mode] = {}
        self._numel = sum(math.prod(weight.shape) for weight in plan.weights)

    def __getstate__(self) -> dict[str, Any]:
        """For a copy: whoever has switched the update off here switches it on here again, and not there."""
        return {**self.__dict__, "disabled": 0}

    def read(self, weight: AdaptedWeight, base: Tensor, training: bool) -> Tensor:
        """What a layer reads, in the shape and dtype of ``base``, which it stores.

        Raises:
            GPartError: if the merged model is trained.
        """
        if self.disabled or self.bases is not None:
            return self._without_theta(weight, base, training)
        name, dropped = weight.name, training and self.config.dropout > 0
        theta = theta_of(self.home, self.name)
        if is_followed(theta, base):
            return self._plain(weight, base, theta, dropped)
        if torch.compiler.is_compiling():
            return self._compiled(weight, base, theta, dropped)
        sources, graph = versions(theta, base), torch.is_grad_enabled()
        evaluation = self.cache.open > 0 and not dropped and not graph
        if evaluation and (again := self.cache.again(name, sources)) is not None:
            return again
        seed = self.scope.mask_seed(name) if dropped else None  # drawn at every read, see mask_seed
        known = self.scope.values.get(name, sources)
        if known is None and self.recomputation.layers:
            known = self.recomputation.get(name, sources)
        if known is not None:
            return known
        mode = "kept" if evaluation and not self.sharded else self.mode(base)
        if mode == "recomputed":
            return self._recomputed(weight, base, theta, seed, sources)
        if mode == "kept":
            value = self._from_cache(weight, base, theta, seed, sources)
        else:
            scaled = self.scaled(theta, base.device, sources[:1])
            value = expand(
                scaled, base if type(base) is nn.Parameter else dense(base), self._masked(weight, base, seed)
            )
        if self.scope.open:
            freed = () if mode == "kept" else (base,)  # the cache holds the place of its own
            self.scope.values.put(name, sources, value, *freed)
        return value

    def leave_device(self) -> None:
        """Leaves nothing of the model's size on a device that the model has left."""
        self.free()
        self.index.forget()
        self.scaling.forget()

    def free(self) -> None:
        """Gives back the memory of kept W0 + P·theta."""
        self.cache.clear()
        if self.total is not None:
            self.total.kept.clear()

    def enter_layer(self, module: nn.Module, args: Any) -> None:
        """Before an adapted layer runs."""
        self.scope.enter(module, args)
        if self.memory.weights in ("kept", "forward") and not self.sharded:
            return
        if torch.compiler.is_compiling() or is_followed():
            return  # they take no hook on saved tensors, and nothing is kept there
        own = [value for value in module._parameters.values() if value is not None]
        if self.sharded or not own or self.mode(own[0]) == "recomputed":
            self.recomputation.enter(module)

    def leave_layer(self, module: nn.Module, args: Any, output: Any) -> None:
        """After it, also when it raises an Exception."""
        self.scope.leave(module, args, output)
        if self.recomputation.layers:
            self.recomputation.leave(module)

    def blocks(self, weight: AdaptedWeight, device: torch.device) -> tuple[Block, ...]:
        """The blocks of a weight with their group indices."""
        known = None if torch.compiler.is_compiling() else self.index.built.get(weight.name)
        return known[1] if known is not None and known[0] == device else self.index.build(weight, device)

    def scaled(self, theta: Tensor, device: torch.device, sources: Versions | None = None) -> Tensor:
        """What the weights look up, theta_j / sqrt(n_j), shape (d,), or a dense map's P·theta, shape (D,), on a device.

        It is computed once per forward pass; ``sources`` are theta's versions.
        """
        if sources is None:
            sources = () if torch.compiler.is_compiling() else versions(theta)
        known = self.scope.values.get(device, sources)
        if known is not None:
            return known
        scaled = self.scale(theta, device)
        if self.scope.open:
            self.scope.values.put(device, sources, scaled)
        return scaled

    def scale(self, theta: Tensor, device: torch.device) -> Tensor:
        """As :meth:`scaled`, as what many expansions start from."""
        if isinstance(self.scaling.projection, Partition):  # known in closed form: asked at every pass, so at once
            scaled = scale(theta, self.plan.size, self.config.isometric).to(device)
        else:
            scaled = self.scaling(theta).to(device)
        return collected(scaled) if not torch.compiler.is_compiling() and scaled.requires_grad else scaled

    @property
    def layout(self) -> object:
        """What is equal for two adapters that have one P."""
        return self.scaling.projection, self.plan.weights, self.config.isometric

    def mask_seed(self, weight: AdaptedWeight, training: bool) -> int | None:
        """The seed of the dropout mask of the forward pass under way, if one is drawn."""
        return self.scope.mask_seed(weight.name) if training and self.config.dropout > 0 else None

    def added(self, weight: AdaptedWeight, base: Tensor, scaled: Tensor, training: bool, seed: int | None) -> Tensor:
        """W0 + P·theta for another theta than the adapter's own, such as a sum of several; nothing of it is kept.

        Args:
            weight: which.
            base: W0, or what was added to it already.
            scaled: theta_j / sqrt(n_j), from :meth:`scale`.
            training: whether the layer is in training mode.
            seed: of the dropout mask, where one was drawn.
        """
        if torch.compiler.is_compiling():
            return compiled.expand(
                scaled, base, self._compiled_blocks(weight, base, training and self.config.dropout > 0)
            )
        return expand(scaled, base, self._masked(weight, base, seed))

    def added_plainly(self, weight: AdaptedWeight, base: Tensor, theta: Tensor, training: bool) -> Tensor:
        """The same where torch follows operations; ``theta`` is not scaled."""
        return self._plain(weight, base, theta, training and self.config.dropout > 0)

    def merged(self, base: Tensor, training: bool) -> Tensor:
        """The merged weight, which is what is stored.

        Raises:
            GPartError: if the merged model is trained.
        """
        if training and torch.is_grad_enabled():
            raise GPartError(f"adapter {self.name!r} is merged: unmerge() before training, theta has no gradient")
        return base

    def mode(self, base: Tensor) -> Mode:
        """What is done with weights of this one's dtype and device."""
        if self.sharded:
            return "forward" if self.memory.weights == "forward" else "recomputed"
        if base.is_meta:
            return "forward"
        key = (base.device, base.dtype)
        mode = self._modes.get(key)
        if mode is None:
            mode = self._modes[key] = mode_of(self.memory, self._numel * base.dtype.itemsize, base.device)
        return mode

    def _without_theta(self, weight: AdaptedWeight, base: Tensor, training: bool) -> Tensor:
        """W0 while disabled, else the merged weight."""
        if self.disabled:
            return dense(base) if self.bases is None else self.bases[weight.name].to(base)  # it may have moved since
        return self.merged(base, training)

    def _masked(self, weight: AdaptedWeight, base: Tensor, seed: int | None, kept: bool = True) -> tuple[Block, ...]:
        """The blocks with their dropout masks, if a seed for them was drawn; ``kept``: masks of a byte for each entry."""
        blocks = self.blocks(weight, base.device)
        if seed is None:
            return blocks
        return with_dropout(blocks, self.config.dropout, seed, block_sizes(weight), base.device, kept)

    def _from_cache(
        self, weight: AdaptedWeight, base: Tensor, theta: Tensor, seed: int | None, sources: Versions
    ) -> Tensor:
        """W0 + P·theta from the cache; where it is there and has no gradient, nothing else is made."""
        graph = torch.is_grad_enabled()
        packed = type(base) is not nn.Parameter and is_packed(base)
        blocks = self._masked(weight, base, seed) if graph else None
        scaled = self.scaled(theta, base.device, sources[:1]) if graph else None

        def compute(out: Tensor) -> None:
            made = self._masked(weight, base, seed) if blocks is None else blocks
            factor = self.scaled(theta, base.device, sources[:1]) if scaled is None else scaled
            expand_into(out, factor, dense(base) if packed else base, made)

        value = self.cache.value(weight.name, theta, base, seed, self.scope.number, sources, compute)
        if blocks is None or scaled is None:
            return value
        return expand(scaled, value if packed else base, blocks, value)

    def _recomputed(
        self, weight: AdaptedWeight, base: Tensor, theta: Tensor, seed: int | None, sources: Versions
    ) -> Tensor:
        """W0 + P·theta that is given again while its layer runs, and computed again in the backward pass."""
        blocks, scaled = self._masked(weight, base, seed, kept=False), self.scaled(theta, base.device, sources[:1])
        if torch.is_grad_enabled():
            value = self._anchored(weight, base, scaled, blocks, sources)
        else:
            value = expand(scaled, dense(base), blocks)
        # theta itself, where it is not scaled, may be written to before the backward pass.
        fixed = scaled.detach() if self.config.isometric else scaled.detach().clone()
        again = partial(_expand_again, fixed, base, blocks)
        return self.recomputation.put(weight.name, sources, value, again, held=base)

    def _anchored(
        self, weight: AdaptedWeight, base: Tensor, scaled: Tensor, blocks: tuple[Block, ...], sources: Versions
    ) -> Tensor:
        """W0 + P·theta whose gradient is summed over the layers of a forward pass before it goes to theta and W0.

        That is what the other modes do, where these layers read one tensor; here each has a tensor of its own.
        """
        key = ("anchor", weight.name)
        anchor = self.scope.values.get(key, sources)
        if anchor is None:
            nothing = torch.zeros((), dtype=base.dtype, device=base.device).expand(base.shape)
            # W0 itself only where it has a gradient: then the anchor is what leads there.
            anchor = expand(scaled, base if base.requires_grad and not is_packed(base) else nothing, blocks, nothing)
            if self.scope.open:
                self.scope.values.put(key, sources, anchor, base)
        return put_in(anchor, expand(scaled.detach(), dense(base).detach(), blocks))

    def _compiled(self, weight: AdaptedWeight, base: Tensor, theta: Tensor, dropped: bool) -> Tensor:
        """Within torch.compile, which plans memory itself; nothing is asked here that would break the graph."""
        known = self.scope.values.get(weight.name, ())
        if known is not None:
            return known
        blocks = self._compiled_blocks(weight, base, dropped)
        value = compiled.expand(self.scaled(theta, base.device), dense(base), blocks)
        if self.scope.open:
            self.scope.values.put(weight.name, (), value)
        return value

    def _compiled_blocks(self, weight: AdaptedWeight, base: Tensor, dropped: bool) -> tuple[Block, ...]:
        blocks = self.blocks(weight, base.device)
        if not dropped:
            return blocks
        p, sizes = self.config.dropout, block_sizes(weight)
        return tuple(
            replace(block, keep=torch.rand(size, device=base.device) >= p, boost=1 / (1 - p))
            for block, size in zip(blocks, sizes, strict=True)
        )

    def _plain(self, weight: AdaptedWeight, base: Tensor, theta: Tensor, dropped: bool) -> Tensor:
        """Where torch follows operations; nothing of it is kept, but for a mask that is drawn, until the pass ends."""
        base = dense(base)
        blocks = self.index.build_plainly(weight, base)
        if dropped and (is_recorded() or is_hollow(base)):
            blocks = self._drawn(weight, base, blocks)
        elif dropped:
            seed = self.scope.mask_seed(weight.name, followed=True)
            blocks = with_dropout(blocks, self.config.dropout, seed, block_sizes(weight), base.device, kept=False)
        scaled = self.scaling(theta, followed=True).to(base.device)
        return expand_plainly(scaled, base, blocks, weight.shape)

    def _drawn(self, weight: AdaptedWeight, base: Tensor, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
        """The blocks with masks that the recorded program draws anew whenever it runs."""
        p, key, sizes = self.config.dropout, ("drawn", weight.name), block_sizes(weight)
        keep = self.scope.values.get(key, ())
        if keep is None:
            keep = torch.rand_like(base.new_empty(sum(sizes), dtype=torch.float32)) >= p
            if self.scope.open:
                self.scope.values.put(key, (), keep)
        masks = torch.split(keep, list(sizes))
        return tuple(replace(block, keep=mask, boost=1 / (1 - p)) for block, mask in zip(blocks, masks, strict=True))


def _expand_again(scaled: Tensor, base: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    return expand(scaled, dense(base), blocks)
