"""A layer that cannot be adapted is told by its real reason and by what to do, and what is told to do works."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from transformers import BertConfig, BertModel

from gpart import GPartConfig, GPartError, attach

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


def pruned() -> nn.Module:
    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w13, self.w2 = nn.Parameter(torch.randn(3, 4, 8)), nn.Parameter(torch.randn(3, 8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.w13[0]) @ self.w2[0]


NAMED: dict[str, tuple[Callable[[], nn.Module], str, list[str]]] = {
    "parametrized weight_norm": (
        lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
        r"its \['weight'\] are computed in each forward pass .* weight_norm",
        ["parametrizations.weight.original0", "parametrizations.weight.original1"],
    ),
    "orthogonal": (
        lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
        "are computed in each forward pass",
        ["parametrizations.weight.original"],
    ),
    "weight_norm": (
        lambda: weight_norm(nn.Linear(4, 4)),
        "no parameter 'weight'; it is computed",
        ["weight_g", "weight_v"],
    ),
    "spectral_norm": (lambda: spectral_norm(nn.Linear(4, 4)), "it is computed", ["weight_orig"]),
    "pruned": (pruned, "it is computed .* pruning", ["weight_orig"]),
    "GRU": (lambda: nn.GRU(4, 4), r"\(GRU\).*no parameter 'weight'; its weights are", ["weight_ih_l0", "weight_hh_l0"]),
    "LSTMCell": (lambda: nn.LSTMCell(4, 4), r"it holds \['weight_ih', ", ["weight_ih", "weight_hh"]),
    "experts": (Experts, r"\(Experts\).* it holds \['w13', 'w2'\]", ["w13", "w2"]),
}


@pytest.mark.parametrize(("build", "said", "names"), NAMED.values(), ids=NAMED)
def test_what_is_no_weight_is_named_and_can_be_adapted(build: Any, said: str, names: list[str]) -> None:
    model = nn.Sequential(build()).eval()
    with pytest.raises(GPartError, match=said) as caught:
        attach(model, GPartConfig(2, ["0"]))
    assert re.search(r"target_parameters=(\[[^]]*\])", str(caught.value))[1] == str(names)
    x, first = torch.randn(3, 4), None
    first = model(x)
    adapter = attach(model, GPartConfig(2, target_parameters=names))
    out = model(x)
    assert all(a.equal(b) for a, b in zip(_tensors(out), _tensors(first), strict=True))
    _tensors(out)[0].square().sum().backward()
    assert adapter.theta.grad.abs().sum() > 0


def _tensors(out: Any) -> list[torch.Tensor]:
    return [out] if isinstance(out, torch.Tensor) else [value for value in out if isinstance(value, torch.Tensor)]


def in_eight_bits() -> nn.Module:
    """As FineGrainedFP8 and compressed-tensors keep a layer: float8, with a scale beside."""
    layer = nn.Linear(4, 4, bias=False)
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return layer


OTHERS: list[tuple[Callable[[], nn.Module], str]] = [
    (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
        r"\(Sequential\).* holds layers, .* target_modules, such as \['0\.0'\]",
    ),
    (lambda: nn.ModuleDict({"a": nn.Conv1d(4, 4, 1)}), r"\(ModuleDict\).* such as \['0\.a'\]"),
    (lambda: nn.TransformerEncoderLayer(4, 1, 8), r"such as \['0\.self_attn', '0\.self_attn\.out_proj', '0\.linear1'"),
    (nn.ReLU, "there is no parameter in it"),
    (in_eight_bits, r"'weight' holds torch\.float8_e4m3fn, .* a scale .* FineGrainedFP8Config\(dequantize=True\)"),
    (lambda: nn.EmbeddingBag(9, 4, sparse=True), "an EmbeddingBag with sparse=True, .* make it with sparse=False"),
    (lambda: nn.Embedding(9, 4, sparse=True), "an Embedding with sparse=True, .* make it with sparse=False"),
    (lambda: nn.EmbeddingBag(9, 4, max_norm=2.0), r"an EmbeddingBag with max_norm=2\.0, which rewrites"),
]


@pytest.mark.parametrize(("build", "said"), OTHERS)
def test_what_cannot_be_adapted_as_it_is_says_why(build: Any, said: str) -> None:
    model = nn.Sequential(build())
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(GPartError, match=said):
        attach(model, GPartConfig(2, ["0"]))
    assert [type(module) for module in model.modules()] == kinds


def test_slices_of_a_transposed_convolution_are_of_its_inputs() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3))
    with pytest.raises(GPartError, match=r"slices reach to 6, but 0\.weight has 4 along dimension 0"):
        attach(model, GPartConfig(2, ["0"], slices={"0": [[0, 6]]}))
    adapter = attach(model, GPartConfig(2, ["0"], slices={"0": [[1, 3]]}))
    with torch.no_grad():
        adapter.theta.fill_(1.0)
    assert adapter.delta("0.weight").abs().sum((1, 2, 3)).bool().tolist() == [False, True, True, False]


def test_a_tied_embedding_that_wants_sparse_gradients_is_refused_by_its_own_name() -> None:
    model = nn.ModuleDict({"out": nn.Linear(4, 9), "words": nn.Embedding(9, 4, sparse=True)})
    model.out.weight = model.words.weight
    with pytest.raises(GPartError, match="words is an Embedding with sparse=True"):
        attach(model, GPartConfig(2, ["out"]))


LAZY: list[tuple[Callable[[], nn.Module], dict[str, Any], str]] = [
    (lambda: nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4)), {"target_modules": ["1"]}, r"1 \(LazyLinear\)"),
    (lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4)), {"target_modules": ["1"]}, r"0 \(LazyLinear\)"),
    (lambda: nn.Sequential(nn.LazyConv1d(4, 1), nn.Linear(4, 4)), {"target_parameters": ["1.weight"]}, "0 .LazyConv1d"),
    (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4)),
        {"target_modules": ["0"], "modules_to_save": ["1"]},
        r"1 \(LazyLinear\)",
    ),
    (  # which has buffers alone
        lambda: nn.Sequential(nn.Linear(4, 4), nn.LazyBatchNorm1d(affine=False)),
        {"target_modules": "all-linear"},
        r"1 \(LazyBatchNorm1d\)",
    ),
]


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize(("build", "asked", "where"), LAZY)
def test_a_lazy_layer_is_to_be_run_wherever_it_stands(
    build: Any, asked: dict[str, Any], where: str, state_of: Any
) -> None:
    model = build()
    state = state_of(model)
    with pytest.raises(GPartError, match=f"{where}.* has no shape yet: run the lazy layer once before"):
        attach(model, GPartConfig(2, **asked))
    state.assert_kept()
    x = torch.randn(3, 4, 4)
    first = model(x)
    adapter = attach(model.eval(), GPartConfig(2, **asked))
    assert adapter.size
    assert model(x).shape == first.shape


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_with_loaded_values_is_adapted_after_its_first_run() -> None:
    """Its first run makes it a Linear, and would take the adapter's class away without a word."""
    model, x = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(4)), torch.randn(3, 4)
    model.load_state_dict(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).state_dict())
    with pytest.raises(
        GPartError, match=r"0 \(LazyLinear\) becomes another class in its first run: run the lazy layer"
    ):
        attach(model, GPartConfig(2, ["0"]))
    model[0](x)
    adapter = attach(model, GPartConfig(2, ["0"]))  # the other is not adapted, and may become what it likes
    first = model(x)
    with torch.no_grad():
        adapter.theta.fill_(1.0)
    assert not torch.equal(model(x), first)
    assert type(model[1]) is nn.Linear
    assert not model[1].weight.requires_grad


def test_layers_that_peft_wraps_are_to_be_merged_first() -> None:
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    network = BertModel(config)
    for value in network.parameters():
        value._is_hf_initialized = True  # type: ignore[attr-defined]  # as from_pretrained leaves it
    wrapped = peft.get_peft_model(network, peft.LoraConfig(r=1, target_modules=["query"]))
    for target, match in (("query", "PEFT wraps it"), ("value", r"lora_B.* are PEFT's, which wraps .*query")):
        with pytest.raises(GPartError, match=rf"{match}.*merge_and_unload"):
            attach(wrapped.get_base_model(), GPartConfig(d=2, target_modules=[target]))
    attach(wrapped.merge_and_unload(), GPartConfig(d=2, target_modules=["query"]))
