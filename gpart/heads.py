"""Which modules of a network are its head: what a new task trains in full beside the adapter.

Invariant: the rule reads the network alone, not the method, so that every method trains the same head. On RoBERTa and ViT
it gives what the paper trains, the module ``classifier``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from gpart.errors import GPartError

HEAD = "head"
"""The value of ``modules_to_save`` that means :func:`head_modules`."""
NAMES = ("score", "classifier")
"""A head's names by convention, as in PEFT (tuners_utils.py, SEQ_CLS_HEAD_NAMES)."""
_CONVOLUTIONAL = ("fc", "head")
"""Those of Transformers' convolutional networks (HGNetV2, PP-LCNet)."""


def head_modules(network: nn.Module) -> list[str]:
    """Returns the names of the modules that make up a network's head, those with parameters.

    - Transformers: all that is outside the base model (``network.base_model_prefix``), and the base model's own
      ``pooler`` if it has one. RoBERTa has its dense layer inside ``classifier``; in BERT the same layer is the pooler of
      the base model, so that ``classifier`` alone would be half a head.
    - timm: what ``get_classifier()`` returns, one module or two.

    Args:
        network: the network itself, not a wrapper of it.

    Raises:
        GPartError: if the network is of neither library, or has no head, with the names of its children.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification, RobertaConfig
        >>> from transformers import RobertaForSequenceClassification
        >>> small = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
        >>> head_modules(BertForSequenceClassification(BertConfig(**small)))
        ['bert.pooler', 'classifier']
        >>> head_modules(RobertaForSequenceClassification(RobertaConfig(**small)))
        ['classifier']
    """
    children = dict(network.named_children())
    prefix = getattr(network, "base_model_prefix", None)
    if isinstance(prefix, str) and prefix in children:
        outside = [name for name, child in children.items() if name != prefix and _has_parameters(child)]
        pooler = getattr(children[prefix], "pooler", None)  # also through torch.compile's wrapper
        # An adapter's own child at the root is no part of the network. It is known by the package that it comes from.
        own = [name for name in outside if not type(children[name]).__module__.startswith("gpart.")]
        pooled = isinstance(pooler, nn.Module) and _has_parameters(pooler)
        found = [*([f"{prefix}.pooler"] if pooled else []), *own]
    elif isinstance(prefix, str):  # not built around one base model, such as CLIP's classifier
        found = [name for name in (*NAMES, *_CONVOLUTIONAL) if name in children and _has_parameters(children[name])][:1]
    elif callable(classifier := getattr(network, "get_classifier", None)):
        heads = classifier()  # a distilled network has two, and returns both
        ours = {id(head) for head in (heads if isinstance(heads, tuple) else (heads,))}
        found = [name for name, module in network.named_modules() if id(module) in ours and _has_parameters(module)]
    else:
        found = []
    if not found:
        raise GPartError(
            f"{type(network).__name__} does not tell which of its modules is the head, as Transformers' and timm's"
            f" classifiers do: name one of {list(children)}"
        )
    return found


def names_of_head(network: nn.Module, asked: Sequence[str] | str | None) -> list[str]:
    """Returns the names of the head's modules: those that were asked for, or what the network tells.

    Raises:
        GPartError: if none are asked for and the network does not tell.
    """
    if asked is None:
        return head_modules(network)
    return [asked] if isinstance(asked, str) else list(asked)


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
