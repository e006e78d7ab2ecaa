"""Parameters that are no layer's ``weight``: experts, recurrent weights, bare parameters; by names, to the bit, and in files.

Each model is compared with an unadapted copy that has W0 + P·theta in its stored weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn
from torch.utils.data import DataLoader, TensorDataset
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM

from gpart import GPartConfig, GPartError, attach, load_adapter
from gpart.callbacks import GPartCallback, load_from_checkpoint

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8,
}  # fmt: skip
TOKENS = torch.arange(12).view(2, 6) * 5 % 31 + 1


class Logits(nn.Module):
    """A language model whose output is a tensor."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, x: Tensor) -> Tensor:
        return self.lm(x).logits


class Tagger(nn.Module):
    """Reads packed sequences, and flattens its weights in forward, as many do."""

    def __init__(self, kind: type[nn.RNNBase] = nn.GRU, **kwargs: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(32, 4, padding_idx=0)
        self.rnn = kind(4, 6, num_layers=2, batch_first=True, bidirectional=True, **kwargs)
        self.out = nn.LazyLinear(3)
        self(TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(self.words(x), torch.tensor([6, 4]), batch_first=True)
        self.rnn.flatten_parameters()
        return self.out(rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


class Cell(nn.Module):
    """torch's cells read attributes, and stand in the same file as its recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.cell = nn.Embedding(32, 4), nn.LSTMCell(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.words(x).unbind(1):
            state = self.cell(step, state)
        return state[0]


class Bare(nn.Module):
    """The module's own parameter, and those in torch's lists of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(32, 4)
        self.mix = nn.Parameter(torch.randn(4, 4))
        self.scales = nn.ParameterList([torch.randn(4), torch.randn(2, 4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        return ((self.words(x) @ self.mix * self.scales[0]) @ self.scales[1]).tanh()


def normed() -> nn.Module:
    return nn.Sequential(nn.Embedding(32, 4), parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh())


@dataclass
class Case:
    build: Callable[[], nn.Module]
    patterns: list[str] | str
    names: list[str]


def _layers(*endings: str) -> list[str]:
    return [f"lm.model.layers.{layer}.mlp.experts.{ending}" for layer in (0, 1) for ending in endings]


RECURRENT = [
    f"rnn.weight_{part}_l{layer}{way}" for layer in (0, 1) for way in ("", "_reverse") for part in ("ih", "hh")
]
CASES = {
    "Mixtral": Case(
        lambda: Logits(MixtralForCausalLM(MixtralConfig(**SIZES))),
        ["experts.gate_up_proj", "experts.down_proj"],
        _layers("gate_up_proj", "down_proj"),
    ),
    "gpt-oss": Case(
        lambda: Logits(GptOssForCausalLM(GptOssConfig(**SIZES))),
        r".*\.experts\.(down_proj|gate_up_proj_bias)",
        _layers("gate_up_proj_bias", "down_proj"),
    ),
    "GRU": Case(Tagger, r"rnn\.weight_.*", RECURRENT),
    "LSTM with projections": Case(
        lambda: Tagger(nn.LSTM, proj_size=2),
        ["weight_hr_l0", "rnn.bias_ih_l1_reverse", "weight_hh_l1"],
        ["rnn.weight_hr_l0", "rnn.weight_hh_l1", "rnn.bias_ih_l1_reverse"],
    ),
    "LSTMCell": Case(Cell, ["weight_hh", "cell.bias_ih"], ["cell.weight_hh", "cell.bias_ih"]),
    "bare": Case(Bare, ["mix", "scales.0", "scales.1"], ["mix", "scales.0", "scales.1"]),
    "what weight_norm computes from": Case(normed, ["original1"], ["1.parametrizations.weight.original1"]),
}
ANY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def model_of(case: Case) -> nn.Module:
    torch.manual_seed(3)
    model = case.build().eval()
    model = model if isinstance(model, Logits) else model.double()  # grouped products know no float64
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in case.names)  # torch's recurrent layers round by what has a gradient
    return model


def moved(adapter: Any) -> Any:
    with torch.no_grad():
        adapter.theta.copy_(torch.linspace(-1, 1, adapter.theta.numel()))
    return adapter


def with_delta(model: nn.Module, adapter: Any) -> nn.Module:
    """A plain model with W0 + P·theta in its weights."""
    for weight in adapter.plan.weights:
        parameter = model.get_parameter(weight.name)
        parameter.data += adapter.delta(weight.name).to(parameter.dtype)
    return model


@ANY
@pytest.mark.parametrize("weights", ["kept", "forward", "recomputed"])
def test_it_computes_what_plain_weights_do_and_has_their_gradient(
    case: Case, weights: Any, reference_groups: Any
) -> None:
    model, plain = model_of(case), model_of(case)
    first = plain(TOKENS)
    adapter = attach(model, GPartConfig(7, target_parameters=case.patterns), weights=weights)
    assert [weight.name for weight in adapter.plan.weights] == case.names
    assert adapter.size == sum(plain.get_parameter(name).numel() for name in case.names)
    assert model(TOKENS).equal(first), "theta = 0 changes nothing"
    with_delta(plain, moved(adapter))
    out, expected = model(TOKENS), plain(TOKENS)
    assert torch.allclose(out, expected, rtol=0, atol=1e-6 if out.dtype is torch.float else 1e-12)
    assert not torch.allclose(out, first)
    out.square().sum().backward()
    expected.square().sum().backward()
    flat = torch.cat([plain.get_parameter(name).grad.double().reshape(-1) for name in case.names])
    groups = torch.from_numpy(reference_groups(adapter.size, 7, 0)).long()
    dense = torch.zeros(7, dtype=torch.double).index_add_(0, groups, flat) / torch.bincount(groups).sqrt()
    assert torch.allclose(adapter.theta.grad.double(), dense, rtol=1e-4, atol=1e-4 * float(dense.abs().max()))


@ANY
def test_merge_unmerge_and_detach_are_to_the_bit(case: Case, same_bits: Any) -> None:
    model, plain = model_of(case), model_of(case)
    kinds = [type(module) for module in model.modules()]
    adapter = moved(attach(model, GPartConfig(7, target_parameters=case.patterns)))
    assert list(model.state_dict())[: len(plain.state_dict())] == list(plain.state_dict())
    expected = model(TOKENS)
    adapter.merge()
    assert model(TOKENS).equal(expected)
    adapter.unmerge()
    copied = copy.deepcopy(model)
    assert copied(TOKENS).equal(expected)
    adapter.detach()
    assert [type(module) for module in model.modules()] == kinds
    assert all(same_bits(value, plain.get_parameter(name)) for name, value in model.named_parameters())
    assert model(TOKENS).equal(plain(TOKENS))
    torch.manual_seed(3)
    merged = moved(attach(model_of(case), GPartConfig(7, target_parameters=case.patterns))).merge_and_unload()
    assert merged(TOKENS).equal(expected)


@ANY
def test_a_folder_brings_it_back(case: Case, tmp_path: Path) -> None:
    model = model_of(case)
    adapter = moved(attach(model, GPartConfig(7, target_parameters=case.patterns)))
    adapter.save(tmp_path)
    again = model_of(case)
    loaded = load_adapter(again, tmp_path)
    assert loaded.config == adapter.config
    assert again(TOKENS).equal(model(TOKENS))


class Lit(LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = model_of(CASES[name]).float()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


@pytest.mark.parametrize("name", ["Mixtral", "GRU"])
def test_the_callbacks_checkpoint_resumes_to_the_bit_and_loads(name: str, tmp_path: Path) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}

    def fit(steps: int, **kwargs: Any) -> tuple[Lit, Any]:
        torch.manual_seed(0)
        callback = GPartCallback(d=6, target_parameters=CASES[name].patterns, module="net")
        trainer = Trainer(max_steps=steps, callbacks=[callback], enable_checkpointing=False, **quiet)
        lit = Lit(name)
        trainer.fit(lit, DataLoader(TensorDataset(TOKENS), batch_size=2), **kwargs)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return lit, callback.adapter

    whole, adapter = fit(4)
    fit(2)
    _, resumed = fit(4, ckpt_path=tmp_path / "2.ckpt")
    assert resumed.theta.equal(adapter.theta)
    assert adapter.theta.abs().sum() > 0
    assert load_from_checkpoint(Lit, tmp_path / "4.ckpt").eval().net(TOKENS).equal(whole.eval().net(TOKENS))


def test_order_slices_and_biases_with_target_modules() -> None:
    config = GPartConfig(
        5,
        ["rnn.out", "out", "words"][1:],
        bias="all",
        target_parameters=["weight_ih_l0", "out.weight"],
        slices={"weight_ih_l0": [[0, 6], [12, 18]]},
    )
    weights = attach(Tagger(), config).plan.weights
    assert [(weight.name, weight.blocks) for weight in weights] == [
        ("words.weight", ((1, 32, 0),)),
        ("rnn.weight_ih_l0", ((0, 6, 124), (12, 18, 148))),
        ("out.weight", ((0, 3, 172),)),  # once, though both settings name it
        ("out.bias", ((0, 3, 208),)),
    ]


def test_a_parameter_under_two_names_of_one_layer_stands_once() -> None:
    layer = Bare()
    layer.again = layer.mix
    assert attach(layer, GPartConfig(4, target_parameters=["mix", "again"])).size == 16


@pytest.mark.parametrize("move", [lambda m: m.float(), lambda m: m.to("meta"), lambda m: m.to(torch.bfloat16)])
def test_torchs_own_list_of_a_recurrent_layer_holds_the_stored_weights(move: Any) -> None:
    model = model_of(CASES["GRU"])
    adapter = moved(attach(model, GPartConfig(7, target_parameters=["weight_ih_l0"])))
    layer = move(model).rnn
    layer.flatten_parameters()
    stored = [layer._parameters[name] for name in layer._flat_weights_names]
    assert all(ref() is value for ref, value in zip(layer._flat_weight_refs, stored, strict=True))
    assert layer.all_weights[0][0] is not stored[0], "but who asks gets W0 + P·theta"
    if not stored[0].is_meta:
        adapter.detach()
    assert stored[0].is_meta or all(a is b for a, b in zip(layer._flat_weights, stored, strict=True))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"target_parameters": ["weight_ih_l7"]},
            r"'weight_ih_l7' matches no parameter .* there are .*'rnn\.weight_ih_l0'",
        ),
        ({"target_parameters": ["weight_ih_l0"], "exclude_modules": ["rnn"]}, r"left by exclude_modules=\['rnn'\]"),
        ({"target_parameters": ["out.weight"], "modules_to_save": ["out"]}, r"left by .* modules_to_save=\['out'\]"),
        (
            {"target_modules": ["rnn.weight_hh_l0"]},
            r"no module \(but the parameter rnn\.weight_hh_l0: .*target_parameters",
        ),
        ({"target_parameters": ["weight_hh_l0"], "d": 10**6}, r"d=1000000 .* target_parameters=\['weight_hh_l0'\]"),
        ({"target_parameters": ["weight_hh_l0"], "slices": {"weight_hh_l0": [[0, 19]]}}, "slices reach to 19"),
        ({"target_parameters": ["count"]}, "matches rnn .GRU., which cannot be adapted: 'count' must hold floating"),
    ],
)
def test_what_does_not_fit_is_told(settings: dict[str, Any], said: str) -> None:
    model = Tagger()
    model.rnn.count = nn.Parameter(torch.zeros(2, dtype=torch.int), requires_grad=False)
    with pytest.raises(GPartError, match=said):
        attach(model, GPartConfig(**{"d": 2, **settings}))
    assert type(model.rnn) is nn.GRU
