"""Every kind of layer: theta = 0 changes nothing, the gradient is Pᵀ of the dense one, one evaluation per forward.

The dense side is an unadapted copy of the model and the reference in conftest.py, both in float64. Each case states
the order of the flat vector itself, as (parameter name, index) pairs.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import timm
import torch
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification
from transformers.pytorch_utils import Conv1D

from gpart import GPartConfig, attach, get_adapters

ALL = np.s_[:]


class Attention(nn.Module):
    """Cross-attention, so that q, k and v have gradients of their own; ``mha`` is MultiheadAttention."""

    def __init__(self, **kwargs):
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True, **kwargs)
        nn.init.normal_(self.mha.in_proj_bias)
        self.widths = 8, self.mha.kdim, self.mha.vdim

    def forward(self, x):
        q, k, v = (x[..., :width] for width in self.widths)
        return self.mha(q, k.roll(1, 1), v.sin())[0]


@dataclass
class Case:
    """A model, an input, what is adapted, and the flat vector's order for bias="none" and "all"."""

    build: object
    run: object
    targets: list
    none: list
    all: list
    slices: dict | None = field(default=None)

    def config(self, bias, d, **kwargs):
        return GPartConfig(d=d, target_modules=self.targets, bias=bias, slices=self.slices, **kwargs)

    def output(self, model):
        model_dtype = next(p.dtype for p in model.parameters())
        return self.run(model, torch.Generator().manual_seed(7), model_dtype)


def normal(*shape):
    """An input of this shape for the model, fixed per case."""
    return lambda model, generator, dtype: model(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))


def numbers(*shape, below=10):
    return lambda model, generator, dtype: model(torch.randint(below, shape, generator=generator))


@functools.cache
def first_vit():
    sizes = {"img_size": 32, "depth": 2, "num_classes": 5, "embed_dim": 24, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, **sizes)


def vit():
    return copy.deepcopy(first_vit())  # making it takes timm a second


CASES = {
    "linear": Case(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
        normal(4, 6),
        ["0", "2"],
        [("0.weight", ALL), ("2.weight", ALL)],
        [("0.weight", ALL), ("0.bias", ALL), ("2.weight", ALL), ("2.bias", ALL)],
    ),
    "linear, one without bias": Case(
        lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3)),
        normal(4, 6),
        ["0", "2"],
        [("0.weight", ALL), ("2.weight", ALL)],
        [("0.weight", ALL), ("2.weight", ALL), ("2.bias", ALL)],
    ),
    "linear, rows 1-2 and 5-7": Case(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
        normal(4, 6),
        ["0", "2"],
        [("0.weight", np.s_[1:3]), ("0.weight", np.s_[5:8]), ("2.weight", ALL)],
        [
            ("0.weight", np.s_[1:3]),
            ("0.bias", np.s_[1:3]),
            ("0.weight", np.s_[5:8]),
            ("0.bias", np.s_[5:8]),
            ("2.weight", ALL),
            ("2.bias", ALL),
        ],
        {"0": [[1, 3], [5, 8]]},
    ),
    "Conv1D of transformers": Case(
        lambda: nn.Sequential(Conv1D(8, 6), nn.Tanh(), Conv1D(3, 8)),
        normal(4, 6),
        ["0", "2"],
        [("0.weight", ALL), ("2.weight", ALL)],
        [("0.weight", ALL), ("0.bias", ALL), ("2.weight", ALL), ("2.bias", ALL)],
    ),
    "Conv1D of transformers, columns 0-1 and 4-6": Case(
        lambda: nn.Sequential(Conv1D(8, 6), nn.Tanh(), Conv1D(3, 8)),
        normal(4, 6),
        ["0"],
        [("0.weight", np.s_[:, 0:2]), ("0.weight", np.s_[:, 4:7])],
        [
            ("0.weight", np.s_[:, 0:2]),
            ("0.bias", np.s_[0:2]),
            ("0.weight", np.s_[:, 4:7]),
            ("0.bias", np.s_[4:7]),
        ],
        {"0": [[0, 2], [4, 7]]},
    ),
    "Conv1d": Case(
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Tanh(), nn.Conv1d(4, 4, 2, groups=2)),
        normal(2, 3, 7),
        ["0", "2"],
        [("0.weight", ALL), ("2.weight", ALL)],
        [("0.weight", ALL), ("0.bias", ALL), ("2.weight", ALL), ("2.bias", ALL)],
    ),
    "Conv2d": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 2, stride=2, groups=2)),
        normal(2, 3, 7, 7),
        ["0", "2"],
        [("0.weight", ALL), ("2.weight", ALL)],
        [("0.weight", ALL), ("0.bias", ALL), ("2.weight", ALL), ("2.bias", ALL)],
    ),
    "Conv2d, output channels 1-2": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh()),
        normal(2, 3, 7, 7),
        ["0"],
        [("0.weight", np.s_[1:3])],
        [("0.weight", np.s_[1:3]), ("0.bias", np.s_[1:3])],
        {"0": [[1, 3]]},
    ),
    "Embedding": Case(
        lambda: nn.Sequential(nn.Embedding(10, 4, padding_idx=0), nn.Tanh(), nn.Linear(4, 3)),
        numbers(5, 6),
        ["0", "2"],
        [("0.weight", np.s_[1:]), ("2.weight", ALL)],
        [("0.weight", np.s_[1:]), ("2.weight", ALL), ("2.bias", ALL)],
    ),
    "LayerNorm": Case(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh()),
        normal(4, 6),
        ["1"],
        [("1.weight", ALL)],
        [("1.weight", ALL), ("1.bias", ALL)],
    ),
    "MultiheadAttention": Case(
        Attention,
        normal(2, 5, 8),
        ["mha"],
        [("mha.in_proj_weight", ALL)],
        [("mha.in_proj_weight", ALL), ("mha.in_proj_bias", ALL)],
    ),
    "MultiheadAttention, q and v": Case(
        Attention,
        normal(2, 5, 8),
        ["mha"],
        [("mha.in_proj_weight", np.s_[0:8]), ("mha.in_proj_weight", np.s_[16:24])],
        [
            ("mha.in_proj_weight", np.s_[0:8]),
            ("mha.in_proj_bias", np.s_[0:8]),
            ("mha.in_proj_weight", np.s_[16:24]),
            ("mha.in_proj_bias", np.s_[16:24]),
        ],
        {"mha": [[0, 8], [16, 24]]},
    ),
    "MultiheadAttention with out_proj": Case(
        Attention,
        normal(2, 5, 8),
        ["mha", "out_proj"],
        [("mha.in_proj_weight", ALL), ("mha.out_proj.weight", ALL)],
        [
            ("mha.in_proj_weight", ALL),
            ("mha.in_proj_bias", ALL),
            ("mha.out_proj.weight", ALL),
            ("mha.out_proj.bias", ALL),
        ],
    ),
    "MultiheadAttention with kdim and vdim": Case(
        lambda: Attention(kdim=6, vdim=4),
        normal(2, 5, 8),
        ["mha"],
        [("mha.q_proj_weight", ALL), ("mha.k_proj_weight", ALL), ("mha.v_proj_weight", ALL)],
        [
            ("mha.q_proj_weight", ALL),
            ("mha.k_proj_weight", ALL),
            ("mha.v_proj_weight", ALL),
            ("mha.in_proj_bias", ALL),
        ],
    ),
    "timm's ViT, q and v of qkv": Case(
        vit,
        normal(2, 3, 32, 32),
        ["qkv"],
        [(f"blocks.{b}.attn.qkv.weight", rows) for b in (0, 1) for rows in (np.s_[0:24], np.s_[48:72])],
        [
            (f"blocks.{b}.attn.qkv.{kind}", rows)
            for b in (0, 1)
            for rows in (np.s_[0:24], np.s_[48:72])
            for kind in ("weight", "bias")
        ],
        {"qkv": [[0, 24], [48, 72]]},
    ),
}
every_case = pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))
both_biases = pytest.mark.parametrize("bias", ["none", "all"])


def count(model, entries):
    values = dict(model.named_parameters())
    return sum(values[name].detach().numpy()[index].size for name, index in entries)


@every_case
@both_biases
def test_theta_zero_gives_the_base_output_bit_for_bit(case, bias, same_bits):
    """Torch picks its kernels by requires_grad too, so the base is compared as it is trained and as it is frozen."""
    model = case.build()
    before = [case.output(model.train(mode)) for mode in (True, False)]
    with torch.no_grad():
        before.append(case.output(copy.deepcopy(model).requires_grad_(False)))
    attach(model, case.config(bias, d=5))
    after = [case.output(model.train(mode)) for mode in (True, False)]
    with torch.no_grad():
        after.append(case.output(model))
    assert all(map(same_bits, before, after))


@every_case
@pytest.mark.parametrize(
    ("kind", "bias"), [("d = 11", "none"), ("d = 11", "all"), ("d = 1", "none"), ("non-isometric", "all")]
)
def test_the_gradient_is_p_transposed_times_the_dense_gradient(case, bias, kind, reference):
    """Weights, output and theta's gradient equal those of a dense model on W0 + P·theta."""
    model, entries = case.build().double(), getattr(case, bias)
    size = count(model, entries)
    d = 1 if kind == "d = 1" else min(size, 11)
    dense = copy.deepcopy(model)
    adapter = attach(model, case.config(bias, d, seed=3, isometric=kind != "non-isometric"))
    model.double()
    with torch.no_grad():
        adapter.theta.normal_(std=0.3)
    exact = reference(size, d, seed=3, isometric=kind != "non-isometric")
    weights = dict(dense.named_parameters())
    deltas = exact.expand_named(adapter.theta, {n: tuple(w.shape) for n, w in weights.items()}, entries)
    with torch.no_grad():
        for name, delta in deltas.items():
            weights[name] += delta
            torch.testing.assert_close(adapter.delta(name), delta)
    assert adapter.size == size
    assert [weight.name for weight in adapter.plan.weights] == list(dict.fromkeys(name for name, _ in entries))

    outputs = case.output(model), case.output(dense)
    torch.testing.assert_close(*outputs)
    for output in outputs:
        (output.square().sum() + output.sum()).backward()
    grads = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    torch.testing.assert_close(adapter.theta.grad, exact.reduce_named(grads, entries))
    assert all(value.grad is None for name, value in model.named_parameters() if name != adapter.theta_name)


@every_case
def test_d_equal_to_size_follows_plain_fine_tuning_of_the_same_weights(case):
    """With d = D, P is a permutation: SGD on theta moves the weights as SGD on themselves does."""
    model = case.build().double()
    size = count(model, case.none)
    plain = copy.deepcopy(model).requires_grad_(False)
    adapter = attach(model, case.config("none", size))
    model.double()
    trained = {name: dict(plain.named_parameters())[name].requires_grad_(True) for name, _ in case.none}
    masks = {name: torch.zeros_like(weight) for name, weight in trained.items()}
    for name, index in case.none:
        masks[name].numpy()[index] = 1
    first = {name: weight.detach().clone() for name, weight in trained.items()}
    optimizers = torch.optim.SGD([adapter.theta], lr=0.05), torch.optim.SGD(trained.values(), lr=0.05)
    for _ in range(5):
        for module, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            case.output(module).square().mean().backward()
            if module is plain:
                for name, weight in trained.items():
                    weight.grad *= masks[name]
            optimizer.step()
    for name, weight in trained.items():
        assert not weight.equal(first[name]), "the example does not move"
        torch.testing.assert_close(adapter.delta(name), weight.detach() - first[name], rtol=1e-9, atol=1e-12)


# --- a RoBERTa of the usual sizes, with two of its twelve layers and a small vocabulary ---


@pytest.fixture(scope="module")
def roberta_base():
    torch.manual_seed(0)
    return RobertaForSequenceClassification(RobertaConfig(num_hidden_layers=2, vocab_size=100)).eval()


@pytest.fixture
def roberta(roberta_base):
    """Its adapter; the module's one model is given back as it was."""
    yield attach(roberta_base, GPartConfig(d=4608, target_modules=["query", "value"], seed=11))
    get_adapters(roberta_base)["default"].detach()


QUERY_VALUE = [
    f"roberta.encoder.layer.{layer}.attention.self.{part}.weight" for layer in (0, 1) for part in ("query", "value")
]
TOKENS = torch.arange(10).view(2, 5) + 5


def test_roberta_is_isometric(roberta):
    """Lengths and angles are kept to 1e-6, and the groups have exactly the stated sizes."""
    adapter = roberta
    assert [weight.name for weight in adapter.plan.weights] == QUERY_VALUE
    assert adapter.size == 4 * 768 * 768
    vectors, images = torch.randn(2, 4608), []
    for vector in vectors:
        with torch.no_grad():
            adapter.theta.copy_(vector)
        images.append(torch.cat([adapter.delta(name).flatten() for name in QUERY_VALUE]).double())
    gram, expected = torch.stack(images) @ torch.stack(images).T, vectors.double() @ vectors.double().T
    assert ((gram - expected).abs().max() / expected.diag().max()) < 1e-6
    values, counts = images[0].unique(return_counts=True)
    assert len(values) == 4608
    assert counts.tolist() == [512] * 4608


def test_roberta_computes_the_same_at_theta_zero_and_its_gradient_is_exact(roberta_base, reference, same_bits):
    with torch.no_grad():
        before = roberta_base(input_ids=TOKENS).logits
    adapter = attach(roberta_base, GPartConfig(d=4608, target_modules=["query", "value"], seed=11))
    try:
        with torch.no_grad():
            assert same_bits(roberta_base(input_ids=TOKENS).logits, before)
        roberta_base(input_ids=TOKENS).logits.square().sum().backward()
    finally:
        grad = adapter.theta.grad
        adapter.detach()
    roberta_base(input_ids=TOKENS).logits.square().sum().backward()
    dense = {name: value.grad for name, value in roberta_base.named_parameters()}
    expected = reference(4 * 768 * 768, 4608, seed=11).reduce_named(dense, [(name, ALL) for name in QUERY_VALUE])
    roberta_base.zero_grad()
    assert (grad - expected).norm() / expected.norm() < 1e-6
    assert grad.norm() <= sum(dense[name].double().square().sum() for name in QUERY_VALUE).sqrt()


# --- fused and separate projections ---


class Separate(nn.Module):
    """q, k and v as layers of their own, of the kind given."""

    def __init__(self, layer):
        super().__init__()
        self.q, self.k, self.v = (layer(8) for _ in range(3))
        for part in (self.q, self.k, self.v):
            nn.init.normal_(part.bias)

    def forward(self, x):
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)


class Fused(nn.Module):
    """The same numbers in one layer."""

    def __init__(self, layer, separate, dim):
        super().__init__()
        self.qkv = layer(24)
        parts = separate.q, separate.k, separate.v
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([part.weight for part in parts], dim))
            self.qkv.bias.copy_(torch.cat([part.bias for part in parts]))

    def forward(self, x):
        return self.qkv(x)


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@both_biases
def test_slices_of_a_fused_weight_equal_separate_layers(kind, bias, same_bits):
    layer, dim = (lambda out: nn.Linear(6, out), 0) if kind == "Linear" else (lambda out: Conv1D(out, 6), 1)
    separate = Separate(layer)
    fused = Fused(layer, separate, dim)
    one = attach(separate, GPartConfig(d=13, target_modules=["q", "v"], bias=bias, seed=5))
    other = attach(
        fused, GPartConfig(d=13, target_modules=["qkv"], slices={"qkv": [[0, 8], [16, 24]]}, bias=bias, seed=5)
    )
    assert one.size == other.size == 2 * 48 + (2 * 8 if bias == "all" else 0)
    with torch.no_grad():
        one.theta.normal_()
        other.theta.copy_(one.theta)
    q, k, v = other.delta("qkv.weight").chunk(3, dim)
    assert same_bits(q, one.delta("q.weight"))
    assert same_bits(v, one.delta("v.weight"))
    assert not k.any()
    if bias == "all":
        q, k, v = other.delta("qkv.bias").chunk(3)
        assert same_bits(q, one.delta("q.bias"))
        assert same_bits(v, one.delta("v.bias"))
        assert not k.any()
    x = torch.randn(5, 6)
    torch.testing.assert_close(fused(x), separate(x))
    for model in (fused, separate):
        model(x).square().sum().backward()
    torch.testing.assert_close(one.theta.grad, other.theta.grad)


# --- shared weights ---


class Tied(nn.Module):
    """A tiny language model whose output layer shares the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.seen = []

    def forward(self, tokens):
        self.seen += [self.embed.weight, self.head.weight]
        return self.head(self.mix(self.embed(tokens)).tanh())


TIED_TOKENS = torch.tensor([[1, 2, 3], [4, 5, 1]])


@pytest.mark.parametrize("targets", [["embed"], ["head"], ["embed", "head"], ["head", "embed"]])
def test_a_tied_weight_counts_once_and_both_owners_see_it(targets, reference):
    """Its gradient is the sum over both uses, and its name is the one of named_parameters, whichever is targeted."""
    model = Tied().double()
    dense = copy.deepcopy(model)
    assert dense.head.weight is dense.embed.weight
    adapter = attach(model, GPartConfig(d=7, target_modules=targets))
    model.double()
    assert adapter.size == 40
    assert [weight.name for weight in adapter.plan.weights] == ["embed.weight"]
    with torch.no_grad():
        adapter.theta.normal_()
        dense.embed.weight += adapter.delta("embed.weight")
    torch.testing.assert_close(model(TIED_TOKENS), dense(TIED_TOKENS))
    assert all(weight is model.seen[0] for weight in model.seen)
    for module in (model, dense):
        module(TIED_TOKENS).square().sum().backward()
    expected = reference(40, 7).reduce_named({"embed.weight": dense.embed.weight.grad}, [("embed.weight", ALL)])
    torch.testing.assert_close(adapter.theta.grad, expected)
    adapter.detach()
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("targets", [["embed"], ["head"]])
def test_a_tied_weight_merges_once_and_its_base_stays_known(targets, same_bits):
    model = Tied()
    adapter = attach(model, GPartConfig(d=7, target_modules=targets))
    first = adapter.base_parameters()["embed.weight"].clone()
    with torch.no_grad():
        adapter.theta.normal_()
    expected = first + adapter.delta("embed.weight")
    adapter.merge()
    assert list(adapter.base_parameters()) == ["embed.weight", "mix.weight", "mix.bias"]
    assert same_bits(adapter.base_parameters()["embed.weight"], first)
    with torch.no_grad():
        assert same_bits(model.embed.weight, expected)
        assert same_bits(model.head.weight, expected)
    adapter.unmerge()
    assert same_bits(adapter.base_parameters()["embed.weight"], first)


def test_one_module_under_two_names_counts_once(reference):
    shared = nn.Linear(4, 4, dtype=torch.float64)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    dense, x = copy.deepcopy(model), torch.randn(3, 4, dtype=torch.float64)
    adapter = attach(model, GPartConfig(d=3, target_modules=["0"]))
    assert adapter.size == 16
    model.double()
    for module in (model, dense):
        module(x).square().sum().backward()
    expected = reference(16, 3).reduce_named({"w": dense[0].weight.grad}, [("w", ALL)])
    torch.testing.assert_close(adapter.theta.grad, expected)
    adapter.detach()
    assert model[0] is model[2]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


# --- the forward pass as a scope ---


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kwargs", [{}, {"kdim": 6, "vdim": 4}])
def test_attention_computes_each_weight_once_per_forward(training, grad, kwargs, evaluations):
    model = Attention(**kwargs).train(training)
    attach(model, GPartConfig(d=5, target_modules=["mha", "out_proj"], bias="all", dropout=0.2), weights="forward")
    weights = 6 if kwargs else 4
    with torch.set_grad_enabled(grad):
        for forward in range(1, 4):
            model(torch.randn(2, 5, 8))
            assert len(evaluations) == forward * weights


def test_a_sub_module_called_by_itself_is_a_scope_too(evaluations):
    model = nn.ModuleDict({"encoder": Attention()})
    attach(model, GPartConfig(d=5, target_modules=["mha"]), weights="forward")
    model["encoder"](torch.randn(2, 5, 8))
    assert len(evaluations) == 1
    model["encoder"].mha(*3 * [torch.randn(2, 5, 8)])
    assert len(evaluations) == 2


def test_the_scope_spans_the_whole_model(evaluations):
    """A layer called twice in one forward pass is computed once; in two passes twice."""
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    attach(model, GPartConfig(d=3, target_modules=["0"]), weights="forward")
    model(torch.ones(1, 4))
    assert len(evaluations) == 1
    model[1:](model[:1](torch.ones(1, 4)))
    assert len(evaluations) == 3


def test_tied_embeddings_are_computed_once_per_forward_with_one_mask(evaluations):
    model = Tied().train()
    adapter = attach(model, GPartConfig(d=7, target_modules=["embed"], dropout=0.5), weights="forward")
    with torch.no_grad():
        adapter.theta.normal_()
    model(TIED_TOKENS)
    first = model.seen.pop()
    assert len(evaluations) == 1
    assert all(weight is first for weight in model.seen)
    model.seen.clear()
    model(TIED_TOKENS)
    assert len(evaluations) == 2
    assert not model.seen[0].equal(first)


def test_nothing_outlives_the_forward_pass(evaluations):
    """Reads outside a forward pass are computed each time, and a changed theta shows at once."""
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(model, GPartConfig(d=3, target_modules=["0"]), weights="forward")
    model[0].weight, model[0].weight
    assert len(evaluations) == 2
    x, outputs = torch.ones(1, 4), []
    for step in range(3):
        outputs.append(model(x))
        with torch.no_grad():
            adapter.theta.add_(step + 1)
    assert not outputs[0].equal(outputs[1])
    assert not outputs[1].equal(outputs[2])
    adapter.theta.data = torch.zeros(3)
    assert model(x).equal(outputs[0])


class Rereading(nn.Module):
    """Reads its layer's weight, does what the test says, and reads it again."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.between = lambda: None

    def forward(self, x):
        first = self.layer.weight
        self.between()
        return first, self.layer.weight


@pytest.mark.parametrize("what", ["theta", "base"])
def test_a_write_within_the_forward_pass_is_seen(what):
    model = Rereading()
    adapter = attach(model, GPartConfig(d=3, target_modules=["layer"]), weights="forward")
    target = adapter.theta if what == "theta" else adapter.base_parameters()["layer.weight"]

    def write():
        with torch.no_grad():
            target.add_(1)

    model.between = write
    first, second = model(torch.ones(1, 4))
    assert not first.equal(second)


def test_a_value_computed_without_gradient_is_not_given_to_a_reader_who_needs_one():
    class Half(Rereading):
        def forward(self, x):
            with torch.no_grad():
                self.layer(x)
            return self.layer(x)

    model = Half()
    adapter = attach(model, GPartConfig(d=3, target_modules=["layer"]), weights="forward")
    model(torch.ones(1, 4)).sum().backward()
    assert adapter.theta.grad.norm() > 0


@pytest.mark.parametrize("then", ["model", "part"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_forward_pass_that_breaks_off_leaves_nothing_behind(error, then, evaluations):
    """Also Ctrl-C, after which a notebook goes on: torch calls no hook then. A stale mask would stay for ever."""
    model = nn.Sequential(Rereading(), nn.Identity()).train()
    adapter = attach(model, GPartConfig(d=3, target_modules=["layer"], dropout=0.5), weights="forward")
    with torch.no_grad():
        adapter.theta.normal_()

    def fail():
        raise error

    model[0].between = fail
    with pytest.raises(error):
        model(torch.ones(1, 4))
    if error is RuntimeError:
        assert not adapter.weights.scope.open
        assert not adapter.weights.scope.values
    model[0].between = lambda: None
    evaluations.clear()
    read = [(model if then == "model" else model[0])(torch.ones(1, 4))[0] for _ in range(6)]
    assert len(evaluations) == 6
    assert any(not weight.equal(read[0]) for weight in read)
    assert not adapter.weights.scope.values
    assert not adapter.weights.scope.masks


def test_an_error_in_another_pre_hook_does_not_unbalance_the_scope(evaluations):
    model = nn.Sequential(nn.Linear(4, 4))

    def refuse(module, args):
        raise RuntimeError("refused")

    handle = model[0].register_forward_pre_hook(refuse)
    adapter = attach(model, GPartConfig(d=3, target_modules=["0"]), weights="forward")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="refused"):
            model(torch.ones(1, 4))
    handle.remove()
    model(torch.ones(1, 4))
    model(torch.ones(1, 4))
    assert len(evaluations) == 2
    assert not adapter.weights.scope.values


def test_threads_have_forward_passes_of_their_own(evaluations):
    """One thread ends its pass while the other is within its own; each computes its weight once and reads it twice."""
    model = Rereading()
    adapter = attach(model, GPartConfig(d=3, target_modules=["layer"]), weights="forward")
    with torch.no_grad():
        adapter.theta.normal_()
    barrier, done, results = threading.Barrier(2, timeout=20), threading.Event(), {}

    def between():
        barrier.wait()
        if threading.current_thread().name == "slow":
            assert done.wait(20)

    model.between = between

    def run():
        results[threading.current_thread().name] = model(torch.ones(1, 4))
        done.set()

    threads = [threading.Thread(target=run, name=name) for name in ("slow", "fast")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(evaluations) == 2
    for first, second in results.values():
        assert first is second
    assert results["slow"][0].equal(results["fast"][0])
    assert results["slow"][0] is not results["fast"][0]


# --- weights that are kept over forward passes ---


def test_within_cached_a_weight_is_computed_once(evaluations):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).eval()
    adapter = attach(model, GPartConfig(d=5, target_modules=["0", "1"], dropout=0.3), weights="forward")
    nn.init.normal_(adapter.theta)
    data = torch.randn(4, 6)
    with torch.no_grad():
        wanted = model(data)
        evaluations.clear()
        with adapter.cached():
            outputs = [model(data) for _ in range(3)]
            with adapter.cached():  # the trainer's within the user's
                model(data)
            outputs.append(model(data))
            assert len(evaluations) == 2
            with adapter.disabled():
                assert not torch.equal(model(data), wanted)
        assert all(torch.equal(output, wanted) for output in outputs)
        model(data)
        assert len(evaluations) == 4
    assert not adapter.weights.cache.values


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_within_cached_what_has_changed_is_computed_anew(mode, evaluations):
    model = nn.Sequential(nn.Linear(6, 6)).eval()
    adapter = attach(model, GPartConfig(d=5, target_modules=["0"]), weights="forward")
    data = torch.randn(4, 6)
    with adapter.cached():
        for change in (
            lambda: nn.init.normal_(adapter.theta),
            lambda: model[0]._parameters["weight"].mul_(2),
            lambda: model.double(),
            lambda: adapter.merge(),
            lambda: adapter.unmerge(),
        ):
            with torch.no_grad():
                change()
            data = data.to(model[0]._parameters["weight"].dtype)
            with mode():
                output = model(data)
            plain = nn.functional.linear(data, model[0].weight.detach(), model[0].bias)  # with gradients: computed now
            assert torch.equal(output, plain.detach())
            assert output.dtype == data.dtype


def test_within_cached_training_computes_and_differentiates(evaluations):
    model = nn.Sequential(nn.Linear(6, 6))
    adapter = attach(model, GPartConfig(d=5, target_modules=["0"], dropout=0.5), weights="forward")
    nn.init.normal_(adapter.theta)
    data = torch.randn(4, 6)
    with adapter.cached():
        with torch.no_grad():
            model.eval()(data)
            masked = [model.train()(data) for _ in range(2)]  # dropout draws each time
        assert not torch.equal(*masked)
        model.eval()(data).sum().backward()
    assert adapter.theta.grad is not None
    assert adapter.theta.grad.count_nonzero() > 0


def test_a_copy_within_cached_keeps_nothing(evaluations):
    model = nn.Sequential(nn.Linear(6, 6)).eval()
    adapter = attach(model, GPartConfig(d=5, target_modules=["0"]), weights="forward")
    with adapter.cached(), torch.no_grad():
        model(torch.randn(4, 6))
        (copied,) = get_adapters(copy.deepcopy(model)).values()
        assert adapter.weights.cache.values
        assert not copied.weights.cache.values
        evaluations.clear()
        copied.model(torch.randn(4, 6))
        copied.model(torch.randn(4, 6))
        assert len(evaluations) == 2


class Recursive(nn.Module):
    """Runs itself, as trees do, and asks its layer for the weight before and after."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        self.seen = []

    def forward(self, x, depth=2):
        self.seen.append(self.layer.weight.detach().clone())
        x = self.layer(x)
        if depth:
            x = self(x, depth - 1)
        if depth == 1 and self.breaks:
            raise KeyboardInterrupt
        self.seen.append(self.layer.weight.detach().clone())
        return x

    breaks = False


@pytest.mark.parametrize("weights", ["kept", "forward", "recomputed"])
def test_a_module_that_calls_itself_has_one_mask_in_a_pass(weights):
    model = Recursive()
    adapter = attach(model, GPartConfig(d=3, target_modules=["layer"], dropout=0.5), weights=weights)
    with torch.no_grad():
        adapter.theta.fill_(1.0)
    passes = []
    for breaks in (False, True, False, False):
        model.breaks, model.seen = breaks, []
        with pytest.raises(KeyboardInterrupt) if breaks else contextlib.nullcontext():
            model(torch.ones(1, 4)).sum().backward()
        assert all(weight.equal(model.seen[0]) for weight in model.seen)
        passes.append(model.seen[0])
    assert not any(one.equal(other) for one, other in itertools.combinations(passes, 2))
