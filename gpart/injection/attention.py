"""Which layers of a network are its attention's query and value projections: what the paper adapts in an encoder.

Invariant: the rule reads names and shapes alone, so that a network gives the same layers with and without its weights.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from gpart.errors import GPartError
from gpart.injection.layers import is_linear, output_dim
from gpart.injection.names import named_modules

QUERY_VALUE = "query-value"
"""The value of ``target_modules`` that means :func:`query_value`."""

PAIRS = (
    ("query", "value"),  # BERT, RoBERTa, ELECTRA, ALBERT, ViT, DINOv2
    ("q_proj", "v_proj"),  # Llama, Qwen, Gemma, CLIP, SigLIP, BART, newer releases' ViT
    ("query_proj", "value_proj"),  # DeBERTa-v2 and -v3
    ("q_lin", "v_lin"),  # DistilBERT, XLM
    ("query_layer", "value_layer"),  # models that keep the name of BERT's attribute
    ("to_q", "to_v"),  # diffusers
    ("q", "v"),  # T5
)
"""By their last names, as Transformers has them."""

FUSED = ("qkv", "Wqkv", "c_attn")
"""One layer for query, key and value, in this order: timm's, ModernBERT's, GPT-2's. Its output is three times as wide as
its input; where several queries share a key it is not, and the layer is not taken for one of these. DeBERTa's ``in_proj``
has query, key and value of each head together, and LFM2's is a convolution's."""

BY_HEAD = ("GPTBigCodeAttention",)
"""Classes whose fused layer has such a name, and query, key and value of each head together."""


def query_value(model: nn.Module) -> tuple[list[str], dict[str, list[list[int]]]]:
    """The query and value projections of a network's attention layers.

    Args:
        model: any network that names them as Transformers or timm do.

    Returns:
        The last names of the layers, for ``target_modules``; and the rows to adapt of a layer that holds query, key and
        value together, for ``slices``.

    Raises:
        GPartError: if there are none.

    Example:
        >>> attention = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("q_proj", "k_proj", "v_proj")})
        >>> query_value(nn.ModuleDict({"0": attention}))
        (['q_proj', 'v_proj'], {})
        >>> query_value(nn.ModuleDict({"qkv": nn.Linear(4, 12), "proj": nn.Linear(4, 4)}))
        (['qkv'], {'qkv': [[0, 4], [8, 12]]})
    """
    names, slices = _found(model)
    if not names:
        linear = {path: one for path, one in named_modules(model) if is_linear(one)}
        ends = list(dict.fromkeys(path.rpartition(".")[2] for path in linear))
        if fused := [name for name in FUSED if name in ends]:
            shapes = {
                str(list(one.get_parameter("weight").shape)) for path, one in linear.items() if _ends_in(path, fused)
            }
            raise GPartError(
                f"target_modules={QUERY_VALUE!r}: the layers {fused} of {type(model).__name__}, with weights of {sorted(shapes)}, do"
                " not hold query, key and value of one width one after the other: name the layers in target_modules, and by"
                " slices={'path.of.a.layer': [[0, width], [2 * width, 3 * width]]} the rows of each"
            )
        raise GPartError(
            f"target_modules={QUERY_VALUE!r}: no attention of {type(model).__name__} names its query and value projections"
            f" as {', '.join('/'.join(pair) for pair in PAIRS)} or {', '.join(FUSED)}; name the layers, its linear ones are"
            f" {ends[:20]}"
        )
    return names, slices


def has_query_value(model: nn.Module) -> bool:
    """Whether there are such layers.

    >>> has_query_value(nn.Linear(2, 2))
    False
    """
    return bool(_found(model)[0])


def _found(model: nn.Module) -> tuple[list[str], dict[str, list[list[int]]]]:
    every = named_modules(model)
    modules = {path: module for path, module in every if is_linear(module)}
    by_head = {path for path, module in every if type(module).__name__ in BY_HEAD}
    below: dict[str, set[str]] = {}
    for path in modules:
        parent, _, name = path.rpartition(".")
        below.setdefault(parent, set()).add(name)
    # Both in one attention layer: a lone "value" may be anything, such as the value head of a reward model.
    names = [name for pair in PAIRS if any(found.issuperset(pair) for found in below.values()) for name in pair]
    slices: dict[str, list[list[int]]] = {}
    for name in FUSED:
        widths = {
            0 if path.rpartition(".")[0] in by_head else _width(module)
            for path, module in modules.items()
            if _ends_in(path, [name])
        }
        if len(widths) == 1 and (width := widths.pop()):
            names.append(name)
            slices[name] = [[0, width], [2 * width, 3 * width]]
    return names, slices


def _ends_in(path: str, names: Collection[str]) -> bool:
    return path.rpartition(".")[2] in names


def _width(module: nn.Module) -> int:
    """The width of each of query, key and value; 0 where they are not of one."""
    weight = module.get_parameter("weight")
    made = weight.shape[output_dim(module, weight)]
    return weight.numel() // made if made * made == 3 * weight.numel() else 0
