"""An adapter's life: dropout, casts and moves, merge, disable, detach, copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import RobertaConfig, RobertaForSequenceClassification

from gpart import GPartConfig, attach, get_adapters
from gpart.injection.names import get_parameter


class Attention(nn.Module):
    """MultiheadAttention as a network of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


FLOATS = torch.randn(3, 5, 8)


def loss_of(model: nn.Module, data: Tensor) -> Tensor:
    out = model(data)
    return (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum()


def tiny() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


def roberta() -> nn.Module:
    return RobertaForSequenceClassification(RobertaConfig(num_hidden_layers=2, vocab_size=100))


def test_the_ablation_is_no_isometry() -> None:
    adapter = attach(tiny(), GPartConfig(d=10, target_modules=["0"], isometric=False))
    with torch.no_grad():
        adapter.theta.fill_(1)
    assert torch.equal(adapter.delta("0.weight"), torch.ones(16, 8))


@pytest.mark.parametrize("d", [1, 128])
def test_one_group_and_as_many_as_weights(d: int) -> None:
    """d = D is fine-tuning of these weights, up to a renaming; d = 1 moves all by one number."""
    model, plain = tiny(), tiny()
    plain.load_state_dict(model.state_dict())
    plain.requires_grad_(False)[0].weight.requires_grad_(True)
    adapter = attach(model, GPartConfig(d=d, target_modules=["0"]))
    data = torch.randn(4, 8)
    ours = torch.optim.SGD([adapter.theta], lr=0.1)
    theirs = torch.optim.SGD([plain[0].weight], lr=0.1)
    for _ in range(5):
        for network, optimizer in ((model, ours), (plain, theirs)):
            optimizer.zero_grad()
            loss_of(network, data).backward()
            if d == 1 and network is plain:
                plain[0].weight.grad.fill_(plain[0].weight.grad.mean())  # PPᵀ·g for a single group
            optimizer.step()
    assert torch.allclose(model[0].weight, plain[0].weight, atol=1e-5)
    assert not torch.allclose(model[0].weight, get_parameter(model, "0.weight"), atol=1e-3)


def test_a_gradient_in_bfloat16_is_summed_exactly(reference: Any) -> None:
    """8,000 weights a group: a float32 running sum would be off by more than 1e-6."""
    model = nn.Linear(1000, 800, bias=False).bfloat16()
    dense = copy.deepcopy(model)
    network = nn.Sequential(model)
    adapter = attach(network, GPartConfig(d=100, target_modules=["0"]))
    data = torch.randn(16, 1000).bfloat16()
    loss_of(network, data).backward()
    loss_of(dense, data).backward()
    assert dense.weight.grad.dtype == torch.bfloat16
    wanted = reference(800_000, 100).reduce_named({"w": dense.weight.grad}, [("w", ...)])
    assert (adapter.theta.grad.double() - wanted).norm() <= 1e-6 * wanted.norm()


class Tied(nn.Module):
    """Input embedding and output layer are one parameter, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(x))))


def test_dropout_drops_and_boosts_with_one_mask_a_pass(evaluations: list[tuple[int, ...]]) -> None:
    model = Tied()
    adapter = attach(model, GPartConfig(d=1, target_modules=["head"], dropout=0.25))
    with torch.no_grad():
        adapter.theta.fill_(54**0.5)  # P·theta is 1 everywhere
    seen: list[Tensor] = []
    for layer in (model.embed, model.head):
        layer.register_forward_hook(
            lambda module, args, out: seen.append((module.weight - kept).detach().round(decimals=4))
        )
    kept = get_parameter(model, "embed.weight").detach()
    model(torch.randint(9, (2, 4)))
    assert torch.equal(seen[0], seen[1])
    assert sorted(seen[0].unique().tolist()) == pytest.approx([0, 4 / 3], abs=1e-4)
    model(torch.randint(9, (2, 4)))
    assert not torch.equal(seen[0], seen[2])
    model.eval()
    model(torch.randint(9, (2, 4)))
    assert torch.equal(seen[4], torch.ones(9, 6))
    assert len(evaluations) == 3


def test_the_gradient_goes_through_the_same_mask() -> None:
    model = nn.Sequential(nn.Linear(40, 40, bias=False))
    adapter = attach(model, GPartConfig(d=1600, target_modules=["0"], dropout=0.5))
    with torch.no_grad():
        adapter.theta.fill_(1)
    before = get_parameter(model, "0.weight")
    weights: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, out: weights.append(module.weight.detach() - before))
    model(torch.eye(40)).sum().backward()
    dropped = int((weights[0].abs() < 0.5).sum())
    assert 600 < dropped < 1000
    assert int((adapter.theta.grad == 0).sum()) == dropped
    assert set(adapter.theta.grad.unique().tolist()) == {0.0, 2.0}


class Recurrent(nn.Module):
    """One layer run in three checkpointed regions, as ALBERT shares its layers."""

    def __init__(self, mode: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.mode = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), mode

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layer(x) if self.mode is None else checkpoint(self.layer, x, use_reentrant=self.mode)
        return x


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_regions_have_the_same_masks_again(reentrant: bool) -> None:
    gradients = []
    for mode in (None, reentrant):
        model = Recurrent(mode)
        adapter = attach(model, GPartConfig(d=9, target_modules=["0"], dropout=0.4))
        with torch.no_grad():
            adapter.theta.copy_(torch.linspace(-1, 1, 9))
        torch.manual_seed(3)
        data = torch.linspace(-1, 1, 24).view(4, 6).requires_grad_()
        # Two forward passes are pending when the first backward begins.
        first, second = loss_of(model, data), loss_of(model, data * 2)
        (first + second).backward()
        gradients.append(adapter.theta.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
    assert gradients[0].count_nonzero() == 9


def test_casts_and_moves_keep_theta_wide() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
    adapter = attach(model, GPartConfig(d=5, target_modules=["0"]))
    with torch.no_grad():
        adapter.theta.normal_()
    theta = adapter.theta.detach().clone()
    for cast in (torch.bfloat16, torch.float16):
        model.to(cast)
        assert (adapter.theta.dtype, model[0].weight.dtype, model[1].weight.dtype) == (torch.float32, cast, cast)
        assert torch.equal(adapter.theta, theta)
    assert model.double()[0].weight.dtype == adapter.theta.dtype == torch.float64
    model.float()
    data = torch.randn(3, 8)
    state, expected = copy.deepcopy(model.state_dict()), model(data)
    assert model.to("meta")[0].weight.is_meta
    assert model(torch.empty(3, 8, device="meta")).shape == (3, 2)
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(adapter.theta, torch.zeros(5))
    # An adapted layer's own reset_parameters writes into a computed weight, so its base comes from a state_dict.
    model.load_state_dict(state)
    assert torch.equal(model(data), expected)


def test_transformers_dtype_stays_what_it_was() -> None:
    model = roberta().to(torch.bfloat16)
    attach(model, GPartConfig(d=50, target_modules="all-linear", modules_to_save=["classifier"]))
    assert model.dtype == torch.bfloat16
    assert list(model.state_dict())[-1] == "gpart.default.theta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_unmerge_disable_detach_are_exact(dtype: torch.dtype, state_of: Any, same_bits: Any) -> None:
    model = nn.ModuleDict({"net": Attention(), "tied": Tied(), "last": nn.Linear(8, 2), "norm": nn.BatchNorm1d(8)}).to(
        dtype
    )
    model["net"].attention.requires_grad_(False)
    state = state_of(model)
    data = FLOATS.to(dtype)

    def run(whole: nn.Module) -> Tensor:
        # In eval mode and without gradients, so that torch's attention takes the same kernel each time.
        with torch.no_grad():
            return whole.eval()["net"](data)

    before = run(model)
    model.train()
    targets = ["attention", "out_proj", "embed"]
    adapter = attach(model, GPartConfig(d=17, target_modules=targets, modules_to_save=["last"], bias="all"))
    with torch.no_grad():
        adapter.theta.normal_()
        model["last"].weight.add_(1)
        model["norm"](torch.randn(4, 8).to(dtype))
    adapted = run(model)
    wanted = model["tied"].head.weight.detach().clone()
    adapter.merge()
    adapter.merge()
    assert same_bits(get_parameter(model, "tied.embed.weight"), wanted)
    assert torch.equal(run(model), adapted)
    with adapter.disabled():
        assert torch.equal(run(model), before)
    adapter.unmerge()
    assert torch.equal(run(model), adapted)
    with adapter.disabled():
        assert torch.equal(run(model), before)
        assert not torch.equal(model["last"].weight, state.before["bits"]["last.weight"])
    adapter.merge()
    model.train()
    with pytest.raises(ValueError, match="merged"):
        model["net"](data)
    copied = copy.deepcopy(model)
    adapter.detach()
    state.assert_kept()
    other = get_adapters(copied)["default"]
    assert other.model is copied
    other.unmerge()
    assert torch.equal(run(copied), adapted)
    other.detach()
    assert list(copied.state_dict()) == list(model.state_dict())


def test_merge_and_unload_leaves_a_plain_model() -> None:
    model = tiny()
    keys, kind = list(model.state_dict()), type(model[0])
    adapter = attach(model, GPartConfig(d=10, target_modules=["0"], modules_to_save=["2"]))
    with torch.no_grad():
        adapter.theta.normal_()
        model[2].bias.add_(1)
    data = torch.randn(3, 8)
    adapted = model(data)
    assert adapter.merge_and_unload() is model
    assert torch.equal(model(data), adapted)
    assert (list(model.state_dict()), type(model[0])) == (keys, kind)


def test_attach_in_eval_mode_stays_in_eval_mode() -> None:
    model = tiny().eval()
    attach(model, GPartConfig(d=10, target_modules=["0"], dropout=0.5))
    assert not any(module.training for module in model.modules())
