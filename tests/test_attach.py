"""What attach chooses, freezes and adds; who may carry an adapter; and that a detached adapter is done with."""

from __future__ import annotations

import copy
from collections import OrderedDict

import peft
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from gpart import GPartConfig, attach, get_adapters, load_adapter
from gpart.errors import GPartError

SIZES = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "num_hidden_layers": 2}


def bert():
    return BertForSequenceClassification(BertConfig(**SIZES))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_head=2, n_layer=2))


def adapted(model, **settings):
    """The paths of the layers that are adapted, in order."""
    adapter = attach(model, GPartConfig(d=3, **settings))
    return [weight.name.removesuffix(".weight") for weight in adapter.plan.weights]


@pytest.mark.parametrize("model", [None, nn.Linear, torch.compile(torch.compile(nn.Linear(2, 2)))], ids=type)
def test_what_is_no_module_is_said(model):
    with pytest.raises(GPartError, match=rf"must be a torch.nn.Module, got {type(model).__name__} "):
        attach(model, GPartConfig(d=3, target_modules="all-linear"))


# --- the choice of layers ---

ATTENTION = [f"bert.encoder.layer.{i}.attention.self." for i in (0, 1)]
LINEAR = [
    f"bert.encoder.layer.{i}.{part}"
    for i in (0, 1)
    for part in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"target_modules": ["query", "value"]}, [a + part for a in ATTENTION for part in ("query", "value")]),
        ({"target_modules": ["value", "query"]}, [a + part for a in ATTENTION for part in ("query", "value")]),
        ({"target_modules": ["self.key"]}, [a + "key" for a in ATTENTION]),
        ({"target_modules": ["1.attention.self.key"]}, [ATTENTION[1] + "key"]),
        ({"target_modules": ["bert.pooler.dense"]}, ["bert.pooler.dense"]),
        ({"target_modules": r".*\.1\..*(query|key)"}, [ATTENTION[1] + "query", ATTENTION[1] + "key"]),
        ({"target_modules": r".*query", "exclude_modules": r".*\.0\..*"}, [ATTENTION[1] + "query"]),
        ({"target_modules": ["query"], "exclude_modules": ["0.attention.self.query"]}, [ATTENTION[1] + "query"]),
        (
            {"target_modules": ["dense"], "exclude_modules": ["output.dense"], "modules_to_save": ["pooler"]},
            LINEAR[4::6],
        ),
    ],
)
def test_patterns_choose_what_peft_chooses_in_the_models_order(settings, expected):
    assert adapted(bert(), **settings) == expected
    lora = peft.get_peft_model(bert(), peft.LoraConfig(r=1, **settings))
    theirs = [name for name, module in lora.base_model.model.named_modules() if hasattr(module, "lora_A")]
    assert theirs == expected


def test_a_name_ends_with_a_pattern_by_whole_parts():
    with pytest.raises(ValueError, match="'uery' matches no module"):
        attach(bert(), GPartConfig(d=3, target_modules=["query", "uery"]))


def test_all_linear_takes_every_linear_layer_but_the_output_layer():
    assert adapted(bert(), target_modules="all-linear") == [*LINEAR, "bert.pooler.dense"]
    assert adapted(bert(), target_modules="all-linear", modules_to_save=["pooler", "classifier"]) == LINEAR
    head = RobertaForSequenceClassification(RobertaConfig(**SIZES))
    assert not any("classifier" in path for path in adapted(head, target_modules="all-linear"))
    layers = [
        f"transformer.h.{i}.{part}" for i in (0, 1) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert adapted(gpt2(), target_modules="all-linear") == layers
    assert adapted(nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1)), target_modules="all-linear") == ["0"]


def test_the_adapted_module_itself_can_be_the_layer():
    layer = nn.Linear(4, 4)
    adapter = attach(layer, GPartConfig(d=3, target_modules=".*", bias="all"))
    assert [weight.name for weight in adapter.plan.weights] == ["weight", "bias"]
    layer(torch.ones(1, 4)).sum().backward()
    assert adapter.theta.grad.norm() > 0
    adapter.detach()
    assert list(layer.state_dict()) == ["weight", "bias"]


# --- what is frozen, what is added ---


def test_frozen_is_all_inside_but_the_saved_modules_and_nothing_outside():
    holder = nn.ModuleDict({"model": bert(), "metric_head": nn.Linear(2, 2)})
    model = holder["model"]
    model.bert.pooler.requires_grad_(False)
    adapter = attach(
        model, GPartConfig(d=3, target_modules=["query"], modules_to_save=["classifier", "pooler"]), name="mine"
    )
    trained = [name for name, value in holder.named_parameters() if value.requires_grad]
    assert trained == [
        "model.bert.pooler.dense.weight",
        "model.bert.pooler.dense.bias",
        "model.classifier.weight",
        "model.classifier.bias",
        "model.gpart.mine.theta",
        "metric_head.weight",
        "metric_head.bias",
    ]
    assert next(reversed(model._modules)) == "gpart"
    assert list(model.state_dict())[-1] == adapter.theta_name == "gpart.mine.theta"
    assert get_adapters(model) == {"mine": adapter}
    assert get_adapters(holder) == {}
    adapter.detach()
    assert [value.requires_grad for value in model.bert.pooler.parameters()] == [False, False]
    assert all(value.requires_grad for value in model.bert.encoder.parameters())


def test_nothing_is_registered_as_a_buffer():
    """DDP broadcasts every buffer on every forward pass."""
    model = nn.Sequential(nn.Linear(4, 4))
    attach(model, GPartConfig(d=3, target_modules=["0"], dropout=0.5))
    model(torch.ones(1, 4))
    assert list(model.buffers()) == []


def test_a_sequential_passes_its_value_on(same_bits):
    model = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), b=nn.Tanh()))
    x = torch.randn(3, 4)
    before = model(x)
    adapter = attach(model, GPartConfig(d=3, target_modules=["a"]))
    assert same_bits(model(x), before)
    assert [type(module).__name__ for module in adapter.detach()] == ["Linear", "Tanh"]


def test_an_outer_model_does_not_silently_freeze_an_inner_adapter(state_of):
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4))
    attach(model[0], GPartConfig(d=3, target_modules=["0"]), name="inner")
    state = state_of(model)
    with pytest.raises(ValueError, match=r"cannot attach adapter 'outer'.*\['0\.0\.gpart\.inner'\]"):
        attach(model, GPartConfig(d=3, target_modules=["1"]), name="outer")
    state.assert_kept()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_an_empty_weight_counts_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(0, 4))
    assert attach(model, GPartConfig(d=3, target_modules=["0", "1"])).size == 16
    assert model[1](torch.ones(2, 0)).shape == (2, 4)
    with pytest.raises(ValueError, match="d=1 is more than the 0 weights"):
        attach(nn.Sequential(nn.Linear(4, 0)), GPartConfig(d=1, target_modules=["0"]))


# --- a detached adapter ---


@pytest.mark.parametrize(
    "use",
    [
        lambda adapter, folder: adapter.theta,
        lambda adapter, folder: adapter.detach(),
        lambda adapter, folder: adapter.merge(),
        lambda adapter, folder: adapter.merge_and_unload(),
        lambda adapter, folder: adapter.delta("0.weight"),
        lambda adapter, folder: adapter.save(folder),
    ],
    ids=["theta", "detach", "merge", "merge_and_unload", "delta", "save"],
)
@pytest.mark.parametrize("how", ["detach", "merge_and_unload"])
@pytest.mark.parametrize("replaced", [False, True])
def test_an_adapter_that_was_taken_off_refuses_and_leaves_a_newer_one_alone(how, use, replaced, tmp_path, state_of):
    model = nn.Sequential(nn.Linear(4, 4))
    old = attach(model, GPartConfig(d=3, target_modules=["0"]))
    getattr(old, how)()
    if replaced:
        attach(model, GPartConfig(d=3, target_modules=["0"]))
    state = state_of(model)
    with pytest.raises(ValueError, match="'default' is not attached any more"):
        use(old, tmp_path)
    state.assert_kept()
    assert len(get_adapters(model)) == replaced
    assert not list(tmp_path.iterdir())


def test_attach_after_detach_starts_anew():
    model = nn.Sequential(nn.Linear(4, 4))
    first = attach(model, GPartConfig(d=3, target_modules=["0"]))
    with torch.no_grad():
        first.theta.normal_()
    first.detach()
    second = attach(model, GPartConfig(d=5, target_modules=["0"], seed=1), name="again")
    assert second.theta.tolist() == [0] * 5
    assert list(model.state_dict()) == ["0.weight", "0.bias", "0.gpart.again.theta"]


def test_detach_refuses_to_lose_another_parametrization(state_of):
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(model, GPartConfig(d=3, target_modules=["0"]))
    nn.utils.parametrize.register_parametrization(model[0], "bias", nn.Identity())
    state = state_of(model)
    with pytest.raises(ValueError, match=r"0\.weight cannot be restored: \['bias'\]"):
        adapter.detach()
    state.assert_kept()


# --- copies ---


def test_a_copy_trains_by_itself(same_bits):
    """theta, saved heads, dropout masks and hooks of a deep copy are its own; detaching one leaves the other."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    adapter = attach(model, GPartConfig(d=3, target_modules=["0"], modules_to_save=["1"]))
    with torch.no_grad():
        adapter.theta.normal_()
    x = torch.randn(3, 4)
    before, copied = model(x), copy.deepcopy(model)
    other = get_adapters(copied)["default"]
    assert other is not adapter
    assert other.model is copied
    assert same_bits(copied(x), before)
    optimizer = torch.optim.SGD([value for value in copied.parameters() if value.requires_grad], lr=0.1)
    copied(x).square().sum().backward()
    optimizer.step()
    assert adapter.theta.grad is None
    assert not copied(x).equal(before)
    assert same_bits(model(x), before)
    trained = copied(x)
    adapter.detach()
    assert same_bits(copied(x), trained)
    other.detach()
    for module in (*model.modules(), *copied.modules()):
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called):
            assert not hooks
    assert same_bits(copied(x), model(x))
    assert type(copied[0]) is nn.Linear


# --- theta is found through the model at every use ---


def test_a_trip_over_the_meta_device_and_back_restores_everything(same_bits):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    adapter = attach(model, GPartConfig(d=3, target_modules=["0"], modules_to_save=["1"]))
    with torch.no_grad():
        adapter.theta.normal_()
    x = torch.randn(3, 4)
    before, state = model(x), {key: value.clone() for key, value in model.state_dict().items()}
    model.to("meta")
    assert adapter.theta.is_meta
    assert model(x.to("meta")).shape == (3, 2)
    model.to_empty(device="cpu").load_state_dict(state)
    assert same_bits(model(x), before)
    model(x).sum().backward()
    assert adapter.theta.grad.norm() > 0


def test_a_functional_call_uses_the_theta_it_is_given():
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(model, GPartConfig(d=3, target_modules=["0"]))
    x, theta = torch.randn(2, 4), torch.randn(3)
    called = torch.func.functional_call(model, {adapter.theta_name: theta}, x)
    gradient = torch.func.grad(
        lambda theta: torch.func.functional_call(model, {adapter.theta_name: theta}, x).square().sum()
    )(theta)
    assert not called.equal(model(x))
    with torch.no_grad():
        adapter.theta.copy_(theta)
    assert called.equal(model(x))
    model(x).square().sum().backward()
    torch.testing.assert_close(gradient, adapter.theta.grad)


def test_a_meta_base_cannot_be_recognised(tmp_path):
    attach(nn.Sequential(nn.Linear(4, 4)), GPartConfig(d=3, target_modules=["0"])).save(tmp_path)
    with pytest.raises(ValueError, match=r"0\.bias is on the meta device"):
        load_adapter(nn.Sequential(nn.Linear(4, 4, device="meta")), tmp_path)


# --- merging and casts ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_and_unload_keeps_head_and_buffers_and_gives_flags_back(dtype, same_bits):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)
    model[1].weight.requires_grad_(False)
    adapter = attach(model, GPartConfig(d=3, target_modules=["0"], modules_to_save=["2"], bias="all"))
    x = torch.randn(6, 4, dtype=dtype)
    with torch.no_grad():
        adapter.theta.normal_()
        model[2].weight.add_(1)
        model(x)
        before, weight, bias = model.eval()(x), model[0].weight.clone(), model[0].bias.clone()
    assert adapter.merge_and_unload() is model
    with torch.no_grad():
        assert same_bits(model(x), before)
    assert same_bits(model[0].weight, weight)
    assert same_bits(model[0].bias, bias)
    assert {name: value.requires_grad for name, value in model.named_parameters()} == {
        "0.weight": True,
        "0.bias": True,
        "1.weight": False,
        "1.bias": True,
        "2.weight": True,
        "2.bias": True,
    }


def test_the_base_of_a_merged_model_follows_its_casts(same_bits):
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(model, GPartConfig(d=3, target_modules=["0"]))
    first = adapter.base_parameters()["0.weight"].detach().clone()
    with torch.no_grad():
        adapter.theta.normal_()
    adapter.merge()
    model.eval().double()
    with adapter.disabled():
        assert model(torch.ones(1, 4, dtype=torch.float64)).dtype == torch.float64
        assert same_bits(model[0].weight, first.double())
    adapter.unmerge()
    assert same_bits(adapter.base_parameters()["0.weight"], first.double())


def test_disabled_ends_with_its_block_also_after_an_error(same_bits):
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(model, GPartConfig(d=3, target_modules=["0"]))
    x = torch.randn(2, 4)
    before = model(x)
    with torch.no_grad():
        adapter.theta.normal_()
    after = model(x)
    with adapter.disabled():
        with adapter.disabled():
            assert torch.equal(model(x), before)
        assert torch.equal(model(x), before)
    with pytest.raises(RuntimeError), adapter.disabled():
        model(torch.ones(1, 5))
    assert same_bits(model(x), after)


@pytest.mark.parametrize("cast", ["to", "half", "bfloat16"])
def test_theta_stays_float32_and_keeps_its_bits_and_gradient(cast, same_bits):
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(model, GPartConfig(d=3, target_modules=["0"]))
    with torch.no_grad():
        adapter.theta.normal_()
    model(torch.ones(1, 4)).sum().backward()
    theta, grad = adapter.theta.detach().clone(), adapter.theta.grad.clone()
    model.to(torch.bfloat16) if cast == "to" else getattr(model, cast)()
    assert same_bits(adapter.theta, theta)
    assert same_bits(adapter.theta.grad, grad)
    dtype = model[0].weight.dtype
    assert dtype == (torch.float16 if cast == "half" else torch.bfloat16)
    expected = (adapter.base_parameters()["0.weight"].float() + adapter.delta("0.weight")).to(dtype)
    assert same_bits(model[0].weight, expected)


def test_theta_is_as_wide_as_a_float64_model():
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(model, GPartConfig(d=3, target_modules=["0"]))
    model.double()(torch.ones(1, 4, dtype=torch.float64)).sum().backward()
    assert adapter.theta.dtype == adapter.theta.grad.dtype == torch.float64
    assert model.float()[0].weight.dtype == adapter.theta.dtype == torch.float32
