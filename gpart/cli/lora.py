"""An adapter as LoRA of PEFT: P·theta of each layer, cut to a rank.

    P·theta of one layer, of shape (out, in)  ~  B·A,    B: (out, r),  A: (r, in),    by its r largest singular values.

Invariant: ``B·A`` is the matrix of rank r that is nearest to P·theta in the Frobenius norm (Eckart and Young, 1936), and
the error that is told is that of the numbers that are written. Heads and biases are written in full. What LoRA cannot
hold is refused by its name.

P·theta shares its d values over the whole model as if at random, so a layer's singular values fall slowly: at a low rank
much is lost. LoRA's rank is no property of such an update; merging it keeps all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpart.adapter import GPartAdapter
from gpart.errors import GPartError
from gpart.injection.layers import is_linear
from gpart.injection.matching import saved_parameters
from gpart.injection.modules import plain_class
from gpart.injection.names import get_submodule, named_modules, split_name
from gpart.injection.targets import AdaptedWeight

_EXACT = 1024
"""Up to this width singular values are computed in float64; above in float32, since it takes minutes a layer."""

_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
"""PEFT's ``task_type`` by the ending of a class's name."""

_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""What PEFT saves in full of its own accord for a task, and so looks for in the file."""


@dataclass(frozen=True)
class Layer:
    """One adapted weight as LoRA."""

    name: str
    """Of the weight."""

    path: str
    """Of its module."""

    shape: tuple[int, ...]
    norm: float
    """‖P·theta‖ of this weight."""

    error: float
    """‖P·theta - B·A‖ / ‖P·theta‖; 0 where P·theta is 0."""

    tensors: dict[str, Tensor]
    """A and B under PEFT's names."""

    update: Tensor
    """B·A in the weight's shape."""

    @property
    def is_bias(self) -> bool:
        """Whether it is a bias, which is written in full."""
        return split_name(self.name)[1] == "bias"


def factors(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A matrix as B·A of a rank, by its largest singular values; zeros fill a rank that it does not have.

    Args:
        delta: of shape (out, in).
        rank: r.

    Returns:
        A of shape (r, in) and B of shape (out, r), float32; each has the square roots of the singular values.

    Example:
        >>> A, B = factors(torch.outer(torch.arange(3.0), torch.ones(4)), rank=2)
        >>> A.shape, B.shape, bool(torch.allclose(B @ A, torch.outer(torch.arange(3.0), torch.ones(4)), atol=1e-6))
        (torch.Size([2, 4]), torch.Size([3, 2]), True)
    """
    wide = torch.float64 if min(delta.shape) <= _EXACT else torch.float32
    left, values, right = torch.linalg.svd(delta.to(wide), full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    lora_a = torch.zeros(rank, delta.shape[1], dtype=torch.float32)
    lora_b = torch.zeros(delta.shape[0], rank, dtype=torch.float32)
    lora_a[:kept] = root[:, None] * right[:kept]
    lora_b[:, :kept] = left[:, :kept] * root
    return lora_a, lora_b


def check_layers(adapter: GPartAdapter) -> None:
    """Checks that LoRA can hold an adapter, before anything is computed.

    Raises:
        GPartError: if it cannot, with the names of what it cannot hold.
    """
    inside = [path for path, module in named_modules(adapter.model) if isinstance(module, nn.MultiheadAttention)]
    adapted, refused = {weight.name for weight in adapter.plan.weights}, []
    for weight in adapter.plan.weights:
        path, attribute = split_name(weight.name)
        module = get_submodule(adapter.model, path)
        if len(weight.owners) > 1:
            others = ", ".join(".".join(filter(None, owner)) for owner in weight.owners[1:])
            refused.append(f"{weight.name} (shared with {others}: LoRA would adapt one of them alone)")
        elif any(path == each or path.startswith(f"{each}.") for each in inside):
            refused.append(f"{weight.name} (MultiheadAttention does not call its layers, so PEFT's would not be asked)")
        elif attribute == "bias":
            if f"{path}.weight".lstrip(".") not in adapted or _dimensions(module) is None:
                refused.append(f"{weight.name} (a bias of {_kind(module)}, whose weight is not adapted)")
        elif attribute != "weight" or _dimensions(module) is None:
            refused.append(f"{weight.name} (a parameter of {_kind(module)})")
    if refused:
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise GPartError(f"LoRA cannot hold {'; '.join(refused[:5])}{more}: gpart merge keeps all of the update")
    if buffers := adapter.changed_buffers():
        raise GPartError(
            f"LoRA has no place for the buffers that training changed, {', '.join(sorted(buffers)[:5])}: gpart merge keeps them"
        )


@torch.no_grad()
def as_layer(adapter: GPartAdapter, weight: AdaptedWeight, rank: int) -> Layer:
    """One adapted weight, cut to a rank; a bias as it is, W0 + P·theta."""
    path, attribute = split_name(weight.name)
    module = get_submodule(adapter.model, path)
    delta = adapter.delta(weight.name).float()
    prefix = f"base_model.model.{path}"
    if attribute == "bias":
        stored = adapter.base_parameters()[weight.name]
        tensors = {f"{prefix}.base_layer.bias": (stored.float() + delta).to(stored.dtype)}
        return Layer(weight.name, path, weight.shape, float(delta.double().norm()), 0.0, tensors, delta)
    turned = _is_turned(module)
    matrix = delta.T if turned else delta.reshape(delta.shape[0], -1)
    lora_a, lora_b = factors(matrix, rank)
    product = lora_b.double() @ lora_a.double()
    norm = float(matrix.double().norm())
    error = float((matrix.double() - product).norm()) / norm if norm else 0.0
    if isinstance(module, nn.Embedding):
        tensors = {f"{prefix}.lora_embedding_A": lora_a, f"{prefix}.lora_embedding_B": lora_b}
    else:
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            lora_a = lora_a.reshape(rank, *delta.shape[1:])
            lora_b = lora_b.reshape(*lora_b.shape, *[1] * (delta.dim() - 2))
        tensors = {f"{prefix}.lora_A.weight": lora_a, f"{prefix}.lora_B.weight": lora_b}
    update = (product.T if turned else product.reshape(delta.shape)).float().contiguous()
    return Layer(weight.name, path, weight.shape, norm, error, tensors, update)


def total_error(layers: Iterable[Layer]) -> float:
    """‖P·theta - all B·A‖ / ‖P·theta‖ over the whole adapter."""
    layers = list(layers)
    norm = sum(layer.norm**2 for layer in layers) ** 0.5
    return sum((layer.error * layer.norm) ** 2 for layer in layers) ** 0.5 / norm if norm else 0.0


def peft_files(
    adapter: GPartAdapter, layers: list[Layer], rank: int, base: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """PEFT's ``adapter_config.json`` and tensors.

    Args:
        adapter: attached.
        layers: all of them.
        rank: r, which ``lora_alpha`` is as well, so that PEFT scales B·A by 1.
        base: the base's name, by which PEFT's Auto classes load it.
    """
    model = adapter.model
    modules = [path for path, _ in named_modules(model)]
    paths = [layer.path for layer in layers if not layer.is_bias]
    saved, _ = saved_parameters(model, adapter.config.modules_to_save)
    saved = [path for path in dict.fromkeys(saved) if not any(path.startswith(f"{other}.") for other in saved)]
    kind = plain_class(model).__name__
    task = next((task for ending, task in _TASKS.items() if kind.endswith(ending)), None)
    heads = [head for head in _HEADS.get(task or "", ()) if head in modules and head not in saved]
    if any(path == head or path.startswith(f"{head}.") for head in heads for path in paths):
        task, heads = None, []  # the head is adapted: PEFT is not to save it in full
    config = {
        "peft_type": "LORA",
        "task_type": task,
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": _exactly(paths, modules),
        "fan_in_fan_out": any(_is_conv1d(get_submodule(model, path)) for path in paths),
        "bias": "lora_only" if any(layer.is_bias for layer in layers) else "none",
        "modules_to_save": [*saved, *heads] or None,
        "init_lora_weights": True,
    }
    # PEFT saves what ends in a name of modules_to_save, also within a word: "classifier" means "pre_classifier" too.
    full = [path for path in modules if path and path.endswith((*saved, *heads))] if saved or heads else []
    tensors = {
        f"base_model.model.{path}.{key}": value.detach().contiguous()
        for path in full
        for key, value in get_submodule(model, path).state_dict().items()
    }
    for layer in layers:
        tensors |= layer.tensors
    return config, tensors


def _exactly(paths: list[str], modules: list[str]) -> list[str] | str:
    """Names by which PEFT, which takes endings, finds these modules and no others.

    Example:
        >>> _exactly(["a.q"], ["a.q", "b.q"]), _exactly(["q"], ["q", "b.q"])
        (['a.q'], 'q')
    """
    endings = tuple(f".{path}" for path in paths)
    if any(name.endswith(endings) and name not in paths for name in modules):
        return "|".join(map(re.escape, paths))
    return paths


def _dimensions(module: nn.Module) -> int | None:
    """The dimensions of a weight that LoRA can hold; None of any other module."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return module.weight.dim() if module.groups == 1 else None
    return 2 if isinstance(module, nn.Embedding) or is_linear(module) else None


def _is_conv1d(module: nn.Module) -> bool:
    """Whether it is Transformers' Conv1D, a Linear with its weight the other way round."""
    return is_linear(module) and not isinstance(module, nn.Linear)


def _is_turned(module: nn.Module) -> bool:
    """Whether the weight has its input features first: PEFT holds it the other way round."""
    return isinstance(module, nn.Embedding) or _is_conv1d(module)


def _kind(module: nn.Module) -> str:
    groups = getattr(module, "groups", 1)
    name = plain_class(module).__name__
    return f"{name} with groups={groups}" if isinstance(groups, int) and groups > 1 else name
