"""What training GPart on a model keeps in memory, measured on the meta device: no weight is read or made.

Invariant: the numbers are of the tensors that a real forward pass makes and keeps for its backward pass, as shapes and
dtypes; what is counted is what this package allocates, without the caching allocator's own overhead.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface

from gpart import GPartAdapter, GPartConfig, attach
from gpart.config import IndicesSetting, MemoryPolicy, WeightsSetting
from gpart.errors import GPartError
from gpart.injection.targets import AdaptedWeight
from gpart.lightning_modules.common.activations import checkpoint_activations
from gpart.partition import Partition
from gpart.studies import architectures
from gpart.studies.architectures import build, default_head, default_targets, find_task

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TEXT = ("causal-lm", "sequence-classification")
LENGTH = 2048
"""Tokens in each example, unless the model has room for fewer."""
_COUNTED = "gpart_counted"


@dataclass(frozen=True)
class MemorySettings:
    """What is trained how."""

    d: int
    """Length of theta."""

    target_modules: list[str] | str | None = None
    """The adapted layers; None as for the table of parameters."""

    modules_to_save: list[str] | None = None
    """The head; None as for the table of parameters."""

    task: str = "auto"
    """One of ``TEXT``, or ``"auto"``: by the architecture."""

    batch_size: int = 2
    """Examples in a micro-batch."""

    length: int = LENGTH
    """Tokens in each."""

    dtype: str = "bfloat16"
    """Of the weights and activations: one of ``DTYPES``, as under Lightning's ``*-true``."""

    dropout: float = 0.0
    """On P·theta; above 0 there is a mask of one byte for each adapted weight, unless they are recomputed."""

    indices: IndicesSetting = "stored"
    """The group indices: ``"stored"`` or ``"computed"``, see :class:`gpart.config.MemoryPolicy`."""

    weights: WeightsSetting = "forward"
    """W0 + P·theta: ``"kept"`` and ``"forward"`` hold all of it, ``"recomputed"`` one layer's."""

    gradient_checkpointing: bool = False
    """Whether activations are recomputed; one layer's, which come back one at a time, are not in the count then."""

    def __post_init__(self) -> None:
        for name in ("d", "batch_size", "length"):
            if (value := getattr(self, name)) < 1:
                raise GPartError(f"{name} must be a whole number, 1 or more, got {value}")
        if self.dtype not in DTYPES:
            raise GPartError(f"dtype must be one of {list(DTYPES)}, got {self.dtype!r}")
        if "auto" in (self.indices, self.weights):
            raise GPartError("indices and weights cannot be planned as 'auto', which asks the device for its memory")
        MemoryPolicy(self.indices, self.weights)  # raises for other words


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by what they are for."""

    weights: int
    """All the model's parameters but theta."""
    indices: int
    """The group index of each adapted weight, int16 where d is at most 32,768, else int32; none where computed."""
    adapted: int
    """W0 + P·theta of every adapted layer, kept from the forward to the backward pass; the largest where recomputed."""
    masks: int
    """Dropout's masks."""
    gradient: int
    """The largest adapted weight's gradient, which is reduced to theta's at once."""
    trained: int
    """theta and the head, their gradients and AdamW's two moments."""
    activations: int
    """What the backward pass needs beside the weights, the loss included."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


def usual_length(name: str, task: str = "auto") -> int:
    """``LENGTH``, or the model's positions if they are fewer.

    Example:
        >>> usual_length("roberta-base"), usual_length("openai-community/gpt2"), usual_length("Qwen/Qwen2.5-0.5B")
        (512, 1024, 2048)
    """
    config = architectures.config(name)
    task = find_task(config) if task == "auto" else task
    if task not in TEXT or getattr(config, "max_position_embeddings", LENGTH) > LENGTH:
        return LENGTH
    return min(LENGTH, _positions(build(config, task)) or LENGTH)


def plan_memory(name: str, settings: MemorySettings) -> MemoryPlan:
    """Runs a forward pass with an adapter on the meta device and counts what it keeps.

    Attention is counted as a fused kernel keeps it: query, key, value, output and one float32 for each query and head,
    never the matrix of probabilities.

    Args:
        name: as :func:`gpart.studies.architectures.config` takes it.
        settings: the adapter, the batch and the precision.

    Raises:
        GPartError: if the model is unknown or no text model, or a setting does not fit it.
        GPartFileError: if the folder has no ``config.json``.

    Example:
        >>> few = plan_memory("Qwen/Qwen2.5-0.5B", MemorySettings(d=131072, batch_size=1, length=64))
        >>> few.weights, few.indices, few.trained
        (988065536, 176160768, 2097152)
    """
    config = architectures.config(name)
    task = find_task(config) if settings.task == "auto" else settings.task
    if task not in TEXT:
        raise GPartError(f"memory is planned for {' and '.join(TEXT)} models; {name} is for {task}")
    AttentionInterface.register(_COUNTED, _attend)
    config._attn_implementation = _COUNTED
    config.use_cache = False
    model = build(config, task).to(DTYPES[settings.dtype])
    positions = _positions(model)
    if positions and settings.length > positions:
        raise GPartError(f"length={settings.length} is more than the {positions} positions of {name}: give --length")
    head = default_head(model, task) if settings.modules_to_save is None else settings.modules_to_save
    targets = default_targets(model, task) if settings.target_modules is None else settings.target_modules
    adapter = attach(model, GPartConfig(settings.d, targets, modules_to_save=head, dropout=settings.dropout))
    if settings.gradient_checkpointing:
        checkpoint_activations(model)
    adapted, activations = _forward(model.train(), adapter, settings)
    layer = max(math.prod(weight.shape) for weight in adapter.plan.weights) * DTYPES[settings.dtype].itemsize
    again = settings.weights == "recomputed"
    numbers = Partition(adapter.size, settings.d).dtype.itemsize
    base = [value for key, value in model.named_parameters() if key != adapter.theta_name]
    trained = [value for value in model.parameters() if value.requires_grad]
    return MemoryPlan(
        weights=sum(map(_bytes, base)),
        indices=adapter.size * numbers if settings.indices == "stored" else 0,
        adapted=layer if again else adapted,
        masks=adapter.size if settings.dropout > 0 and not again else 0,
        gradient=layer,
        trained=4 * sum(map(_bytes, trained)) - sum(_bytes(value) for value in trained if value is not adapter.theta),
        activations=activations,
    )


def _positions(model: nn.Module) -> int | None:
    """The tokens that a model has positions for. RoBERTa and its kin keep the first ones of their table for padding."""
    found: int | None = getattr(model.config, "max_position_embeddings", None)
    tables = (part for key, part in model.named_modules() if key.endswith("position_embeddings"))
    first = [part.padding_idx for part in tables if isinstance(part, nn.Embedding) and part.padding_idx is not None]
    return found - first[0] - 1 if found and first else found


def _forward(model: nn.Module, adapter: GPartAdapter, settings: MemorySettings) -> tuple[int, int]:
    """Bytes of the adapted weights and of all else that is kept for the backward pass."""
    ids = torch.zeros(settings.batch_size, settings.length, dtype=torch.long, device="meta")
    weights = {value.untyped_storage()._cdata for value in [*model.parameters(), *model.buffers()]}
    adapted: dict[int, Tensor] = {}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no later storage gets the same address
        return tensor

    with _recorded(adapter, adapted), saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=ids).logits
        rows = logits[:, :-1].reshape(-1, logits.shape[-1]) if logits.ndim == 3 else logits
        targets = torch.zeros(len(rows), dtype=torch.long, device="meta")
        nn.functional.cross_entropy(rows.float(), targets, reduction="sum")
    rest = [tensor for place, tensor in kept.items() if place not in weights and place not in adapted]
    return (
        sum(value.untyped_storage().nbytes() for value in adapted.values()),
        sum(value.untyped_storage().nbytes() for value in rest),
    )


@contextlib.contextmanager
def _recorded(adapter: GPartAdapter, adapted: dict[int, Tensor]) -> Iterator[None]:
    """Notes the storage of every adapted weight that a layer reads."""
    read = adapter.weights.read

    def noted(weight: AdaptedWeight, base: Tensor, training: bool) -> Tensor:
        value = read(weight, base, training)
        adapted[value.untyped_storage()._cdata] = value
        return value

    vars(adapter.weights)["read"] = noted
    try:
        yield
    finally:
        del vars(adapter.weights)["read"]


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


class _Attention(Function):
    """Keeps what a fused attention kernel keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, tokens, _ = query.shape
        output = query.new_empty(batch, tokens, heads, value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(batch, heads, tokens, dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("only what is kept is counted; nothing is differentiated")


def _attend(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_mask: Any, **_settings: Any
) -> tuple[Tensor, None]:
    return _Attention.apply(query, key, value), None
