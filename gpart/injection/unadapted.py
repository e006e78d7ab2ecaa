"""What "all-linear" leaves out: matrices of a model that are no Linear layer's weight."""

from __future__ import annotations

import re
import warnings

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from gpart.config import GPartConfig
from gpart.injection.matching import ALL_LINEAR, is_excluded, output_layers, saved_parameters
from gpart.injection.names import named_modules, named_parameters, split_name
from gpart.injection.targets import Plan

_MOST = 0.1
"""Of a model's matrices, by their numbers, what may be left out unsaid."""

_NAMED = 6

_EMBEDDINGS_AND_NORMS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm, _NormBase)


def warn_of_unadapted(model: nn.Module, config: GPartConfig, plan: Plan) -> None:
    """Warns where "all-linear" leaves out more than a tenth of the matrices: it means Linear and Conv1D layers only.

    Matrices are the parameters of two dimensions or more but those of embeddings, norms, the output layer, and what the
    config leaves out by name.

    Args:
        model: with the plan's weights.
        config: what was asked for.
        plan: what is adapted.
    """
    if config.target_modules != ALL_LINEAR:
        return
    matrices = _matrices(model, config)
    adapted = {weight.name for weight in plan.weights}
    missing = {name: numel for name, numel in matrices.items() if name not in adapted}
    total, left = sum(matrices.values()), sum(missing.values())
    if left <= _MOST * total:
        return
    kinds: dict[str, list[str]] = {}  # of each the same in every layer
    for name in sorted(missing, key=lambda name: -missing[name]):
        kinds.setdefault(re.sub(r"\d+", "0", name), []).append(name)
    named = [names[0] if len(names) == 1 else f"{names[0]} ({len(names)} of them)" for names in kinds.values()]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    every = [name for names in kinds.values() for name in names]
    layers = dict.fromkeys(_ending(split_name(name)[0]) for name in every if name.endswith(".weight"))
    others = dict.fromkeys(_ending(name) for name in every if not name.endswith(".weight"))
    hints = [f"these parameters in target_parameters={[*others]}"] if others else []
    if layers:
        hints.append(f"these layers in target_modules ({', '.join(layers)})")
    warnings.warn(
        f'target_modules="all-linear" adapts Linear and Conv1D layers, and leaves out {left / total:.0%} of the numbers of'
        f" this model's matrices: {', '.join(named[:_NAMED])}{more}. To adapt them as well, name"
        f" {' or '.join(hints)}; target_parameters goes with all-linear",
        stacklevel=3,
    )


def _ending(name: str) -> str:
    """What is enough to name a parameter or a layer in every block: a number alone would name others, too.

    >>> _ending("layers.0.attn.in_proj_weight"), _ending("layers.0.w1"), _ending("layers.0.scales.1"), _ending("blocks.2.0")
    ('attn.in_proj_weight', 'w1', 'scales.1', 'blocks.2.0')
    """
    *above, ending = name.split(".")
    if above and not ending.isdigit() and not above[-1].isdigit():
        return f"{above[-1]}.{ending}"
    while above and ending.partition(".")[0].isdigit():
        ending = f"{above.pop()}.{ending}"
    return ending


def _matrices(model: nn.Module, config: GPartConfig) -> dict[str, int]:
    """How many numbers each matrix has, by its name."""
    saved_paths, saved = saved_parameters(model, config.modules_to_save)
    outputs = output_layers(model)
    others: set[int] = set()  # a matrix that an embedding or the output layer shares is theirs
    matrices: dict[str, int] = {}
    for path, module in named_modules(model):
        own = {name: value for name, value in module._parameters.items() if value is not None}
        kind = type(module).__name__
        by_name = kind.endswith(("Embedding", "Embeddings")) or "Norm" in kind
        if isinstance(module, _EMBEDDINGS_AND_NORMS) or by_name or any(module is output for output in outputs):
            others |= {id(value) for value in own.values()}
        if is_excluded(path, config, saved_paths):
            others |= {id(value) for value in own.values()}
    for name, value in named_parameters(model).items():
        # A first dimension of one is a position table's or a class token's.
        matrix = value.dim() > 1 and value.shape[0] > 1 and value.is_floating_point()
        if matrix and id(value) not in others and name not in saved:
            matrices[name] = value.numel()
    return matrices
