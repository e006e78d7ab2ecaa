"""The base's names stay: what plain readers and writers of a model see of an adapted one."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpart import GPartConfig, attach, get_adapters
from gpart.injection.modules import plain_class
from gpart.injection.names import get_parameter, is_adapted


class Net(nn.Module):
    """Every kind of layer, a tied pair, a bias that joins."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.attention(x, x, x)[0]
        return self.head(self.conv(x.transpose(1, 2)).transpose(1, 2))


CONFIG = GPartConfig(d=7, target_modules=["embed", "attention", "out_proj", "conv"], bias="all")
IDS = torch.arange(6).view(1, 6)


@pytest.fixture
def adapted() -> Net:
    net = Net()
    with torch.no_grad():
        attach(net, CONFIG).theta.normal_()
    return net


def test_the_keys_are_the_bases_and_the_adapters_own(adapted: Net) -> None:
    plain = Net()
    assert list(adapted.state_dict()) == [*plain.state_dict(), "gpart.default.theta"]
    for duplicates in (True, False):
        names = [name for name, _ in plain.named_parameters(remove_duplicate=duplicates)]
        found = [name for name, _ in adapted.named_parameters(remove_duplicate=duplicates)]
        assert found == [*names, "gpart.default.theta"]
    assert [name for name, _ in adapted.named_modules()][: len(list(plain.modules()))] == [
        name for name, _ in plain.named_modules()
    ]


def test_what_stands_under_a_name_is_w0_and_what_the_layer_reads_is_not(adapted: Net) -> None:
    plain = Net()
    for name, value in plain.state_dict().items():
        assert adapted.state_dict()[name].equal(value)
    adapter = get_adapters(adapted)["default"]
    for weight in adapter.plan.weights:
        path, _, attribute = weight.name.rpartition(".")
        layer = adapted.get_submodule(path)
        assert is_adapted(layer)
        stored = get_parameter(adapted, weight.name)
        assert stored is layer._parameters[attribute]
        read = getattr(layer, attribute)
        assert read.equal(stored + adapter.delta(weight.name))
        assert not read.equal(stored)
        for mover in ("torch.distributed.fsdp._flat_param", "accelerate.utils.modeling"):
            assert (
                eval("getattr(layer, attribute)", {"__name__": mover}, {"layer": layer, "attribute": attribute})
                is stored
            )


def test_plain_writers_and_readers_pass_the_state_on(adapted: Net, tmp_path: Path) -> None:
    torch.save(adapted.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    theta = state.pop("gpart.default.theta")
    plain = Net()
    nn.init.zeros_(plain.conv.weight)
    plain.load_state_dict(state, strict=True)
    assert plain.conv.weight.equal(Net().conv.weight)
    other = Net()
    attach(other, CONFIG)
    other.load_state_dict({**state, "gpart.default.theta": theta}, strict=True)
    assert other(IDS).equal(adapted(IDS))


def old_name(name: str, adapted: set[str]) -> str:
    path, _, attribute = name.rpartition(".")
    return f"{path}.parametrizations.{attribute}.original" if name in adapted else name


def test_a_state_with_the_names_of_before_still_loads(adapted: Net) -> None:
    """Version 0.1.0 wrote the adapted weights under the names that torch's parametrizations give them."""
    names = {"embed.weight", "head.weight", "attention.in_proj_weight", "attention.in_proj_bias", "conv.weight",
             "conv.bias", "attention.out_proj.weight", "attention.out_proj.bias"}  # fmt: skip
    state = {old_name(name, names): value for name, value in adapted.state_dict().items()}
    assert sum("parametrizations" in name for name in state) == 8
    other = Net()
    attach(other, CONFIG)
    for value in other.state_dict().values():
        value.zero_()
    before = dict(state)
    other.load_state_dict(state, strict=True)
    assert state == before  # the caller's dict is left alone
    for name, value in adapted.state_dict().items():
        assert other.state_dict()[name].equal(value), name


def test_a_strange_key_is_still_a_strange_key(adapted: Net) -> None:
    state = {**adapted.state_dict(), "conv.parametrizations.scale.original": torch.ones(1)}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*conv\.parametrizations\.scale\.original"):
        adapted.load_state_dict(state)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_and_pickles_are_adapted_models_of_their_own(adapted: Net, way: Any) -> None:
    wanted = adapted(IDS)
    wanted.sum().backward()  # all that is made at first use is there
    made = way(adapted)
    assert made(IDS).equal(wanted)
    assert type(made.conv) is type(adapted.conv)
    adapter = get_adapters(made)["default"]
    assert adapter.model is made
    with torch.no_grad():
        adapter.theta.zero_()
    assert made(IDS).equal(Net()(IDS))
    assert adapted(IDS).equal(wanted)
    adapter.detach()
    assert type(made.conv) is nn.Conv1d
    assert is_adapted(adapted.conv)


def test_a_pickle_is_read_in_a_process_that_has_adapted_nothing(adapted: Net, tmp_path: Path, torchless: Any) -> None:
    layer = nn.Sequential(nn.Linear(4, 4))
    adapter = attach(layer, GPartConfig(d=3, target_modules=["0"]))
    with torch.no_grad():
        adapter.theta.copy_(torch.tensor([1.0, 2.0, 3.0]))
    (tmp_path / "layer.pickle").write_bytes(pickle.dumps(layer))
    code = (
        "import pickle, sys, torch; layer = pickle.load(open(sys.argv[1], 'rb')); print(type(layer[0]).__name__,"
        "layer[0].weight.double().sum().item())"
    )
    assert torchless(code, str(tmp_path / "layer.pickle")).split() == [
        "GPartLinear",
        str(layer[0].weight.double().sum().item()),
    ]


@pytest.fixture
def torchless() -> Any:
    """Runs code in a fresh process and gives what it printed."""
    import subprocess
    import sys

    def run(code: str, *words: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_new_parameter_takes_the_place_of_w0(adapted: Net) -> None:
    adapter = get_adapters(adapted)["default"]
    delta = adapter.delta("conv.weight")
    adapted.conv.weight = nn.Parameter(torch.ones(8, 8, 3), requires_grad=False)
    assert adapted.conv.weight.equal(1 + delta)
    assert adapted.state_dict()["conv.weight"].eq(1).all()


def test_a_plain_tensor_can_stand_in_for_w0_as_fsdp_and_data_parallel_have_it(adapted: Net) -> None:
    layer, adapter = adapted.conv, get_adapters(adapted)["default"]
    delta, kept = adapter.delta("conv.weight"), layer._parameters.pop("weight")
    with pytest.raises(AttributeError, match="no attribute 'weight'"):
        _ = layer.weight
    layer.weight = torch.full((8, 8, 3), 2.0)
    assert layer.weight.equal(2 + delta)
    del layer.weight
    assert not hasattr(layer, "weight")
    layer.weight = kept
    assert layer.weight.equal(kept + delta)


def test_an_error_while_reading_is_not_taken_for_a_weight_that_is_not_there(
    adapted: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python would ask Module.__getattr__ next, and the layer would run on W0 without a word."""

    def broken(*given: Any) -> Tensor:
        raise AttributeError("no such thing")

    monkeypatch.setattr(get_adapters(adapted)["default"].weights, "read", broken)
    with pytest.raises(RuntimeError, match=r"conv\.weight could not be computed: no such thing"):
        adapted.conv(torch.ones(1, 8, 4))


def test_two_layers_of_a_class_share_one_class_and_other_attributes_have_another(adapted: Net) -> None:
    net = Net()
    attach(net, GPartConfig(d=7, target_modules=["conv"]))
    assert type(net.conv) is not type(adapted.conv)  # without its bias
    assert isinstance(net.conv, nn.Conv1d)
    assert plain_class(net.conv) is plain_class(adapted.conv) is nn.Conv1d
    again = Net()
    attach(again, GPartConfig(d=5, target_modules=["conv"]))
    assert type(again.conv) is type(net.conv)


def test_a_merged_model_saves_as_a_plain_one(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )  # fmt: skip
    model = BertModel(config).eval()
    adapter = attach(model, GPartConfig(d=11, target_modules=["query", "value"]))
    with torch.no_grad():
        adapter.theta.normal_()
    wanted = model(IDS).last_hidden_state
    adapter.merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    read, told = BertModel.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    torch.testing.assert_close(read(IDS).last_hidden_state, wanted)


@pytest.mark.parametrize("weights", ["kept", "forward", "recomputed"])
@pytest.mark.parametrize("warm", [False, True])
def test_function_transforms_find_the_weights_by_their_names(weights: str, warm: bool) -> None:
    adapted = Net()
    adapter = attach(adapted, CONFIG, weights=weights)
    with torch.no_grad():
        adapter.theta.normal_()
    if warm:
        adapted(IDS).sum().backward()
        adapter.theta.grad = None
    base = {"conv.weight": torch.zeros(8, 8, 3)}
    found = torch.func.functional_call(adapted, base, (IDS,))
    with torch.no_grad():
        adapted.conv._parameters["weight"].zero_()
    assert found.equal(adapted(IDS))

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(adapted, values, (IDS,)).square().sum()

    gradient = torch.func.grad(loss)({adapter.theta_name: adapter.theta.detach()})[adapter.theta_name]
    loss({}).backward()
    torch.testing.assert_close(gradient, adapter.theta.grad)


def test_a_parameter_by_its_name_is_the_one_that_named_parameters_gives() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    adapter = attach(model, GPartConfig(d=2, target_modules=["0"]))
    with torch.no_grad():
        adapter.theta.fill_(1)
    assert model.get_parameter("0.weight") is dict(model.named_parameters())["0.weight"]
    assert not torch.equal(model.get_parameter("0.weight"), model[0].weight)
    assert model.get_parameter(adapter.theta_name) is adapter.theta
