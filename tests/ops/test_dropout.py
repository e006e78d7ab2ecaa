"""Dropout on P·theta: its rate, its masks, and the same masks in every recomputation."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from gpart import GPartConfig, attach


def dropped_updates(adapter, layer, name):
    """What a read of the layer's weight adds to W0."""
    return layer.weight.detach() - adapter.base_parameters()[name]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_dropped_share_is_p_and_the_kept_entries_are_boosted(p):
    model = nn.Sequential(nn.Linear(200, 200))
    adapter = attach(model, GPartConfig(d=1, target_modules=["0"], dropout=p))
    with torch.no_grad():
        adapter.base_parameters()["0.weight"].zero_()
        adapter.theta.fill_(200.0)  # P·theta is 1 everywhere
    weight = model.train()[0].weight
    zero, boost = weight.unique().tolist()
    # p is rounded to a multiple of 2^-16 on a CPU, and the boost fits the p that is drawn.
    assert zero == 0
    assert boost == pytest.approx(1 / (1 - round(p * 65536) / 65536), rel=1e-7)
    dropped = int((weight == 0).sum())
    assert abs(dropped - 40_000 * p) < 6 * (40_000 * p * (1 - p)) ** 0.5
    assert model.eval()[0].weight.eq(1).all()


def test_without_dropout_training_draws_no_random_number():
    model = nn.Sequential(nn.Linear(4, 4)).train()
    attach(model, GPartConfig(d=3, target_modules=["0"]))
    before = torch.get_rng_state()
    model(torch.ones(1, 4))
    assert torch.get_rng_state().equal(before)


def test_every_weight_slice_and_pass_has_a_mask_of_its_own():
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)).train()
    slices = {"0": [[0, 8], [12, 20]]}
    adapter = attach(model, GPartConfig(d=1, target_modules=["0", "1"], slices=slices, dropout=0.5))
    with torch.no_grad():
        adapter.theta.fill_(10)
    masks = []
    for _ in range(2):
        first = dropped_updates(adapter, model[0], "0.weight") != 0
        second = dropped_updates(adapter, model[1], "1.weight") != 0
        masks += [first[:8], first[12:], second[:8], second[12:]]
        assert not first[8:12].any()
    for i, mask in enumerate(masks):
        assert all(40 < int((mask == other).sum()) < 120 for other in masks[:i])


def test_torchs_seed_decides_the_masks():
    model = nn.Sequential(nn.Linear(20, 20)).train()
    adapter = attach(model, GPartConfig(d=1, target_modules=["0"], dropout=0.5))
    with torch.no_grad():
        adapter.theta.fill_(10)
    read = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        read.append(model(torch.ones(1, 20)))
    assert read[0].equal(read[2])
    assert not read[0].equal(read[1])


def test_the_gradient_goes_through_the_mask_of_its_own_pass():
    """Two passes are pending, the later one first in the backward pass; each has the mask that it computed with."""
    model = nn.Sequential(nn.Linear(20, 20, bias=False)).train()
    adapter = attach(model, GPartConfig(d=400, target_modules=["0"], dropout=0.25))
    with torch.no_grad():
        adapter.base_parameters()["0.weight"].zero_()
        adapter.theta.fill_(1)
    passes = [model(torch.eye(20)) for _ in range(2)]
    for output in reversed(passes):
        adapter.theta.grad = None
        (output * torch.arange(400.0).view(20, 20)).sum().backward()
        # With x = I the output is Wᵀ, so an entry's gradient is its factor where it is kept.
        groups = adapter.delta("0.weight")  # all ones: d = D is a permutation
        assert groups.eq(1).all()
        expected = (output.detach() * torch.arange(400.0).view(20, 20)).flatten().sort().values
        torch.testing.assert_close(adapter.theta.grad.sort().values, expected)


class Shared(nn.Module):
    """One layer run three times, as in ALBERT; first read outside any region if asked."""

    def __init__(self, mode, read_before=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.mode, self.read_before = mode, read_before

    def forward(self, x):
        if self.read_before:
            x = self.layer(x)
        for _ in range(3):
            x = self.layer(x) if self.mode is None else checkpoint(self.layer, x, use_reentrant=self.mode)
        return x


def in_this_thread(work):
    work()


def in_another_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.parametrize("backward", [in_this_thread, in_another_thread])
@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_regions_compute_again_with_the_same_masks(reentrant, read_before, backward):
    """Also in another thread: on an accelerator autograd runs the backward pass in one of its own."""
    gradients = []
    for mode in (None, reentrant):
        model = Shared(mode, read_before)
        adapter = attach(model, GPartConfig(d=9, target_modules=["0"], dropout=0.4))
        with torch.no_grad():
            adapter.theta.copy_(torch.linspace(-1, 1, 9))
        torch.manual_seed(3)
        x = torch.linspace(-1, 1, 24).view(4, 6).requires_grad_()
        losses = [model(x).square().sum(), model(2 * x).square().sum()]  # two forward passes are pending
        for loss in losses:
            backward(loss.backward)
        gradients.append(adapter.theta.grad)
    assert gradients[0].abs().min() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = BertConfig(
    vocab_size=20, hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=3, **OFF
)
GPT2 = GPT2Config(vocab_size=20, n_embd=16, n_head=2, n_layer=3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (lambda: BertModel(BERT), {"target_modules": ["query", "value"]}),
        (lambda: GPT2Model(GPT2), {"target_modules": ["c_attn"], "slices": {"c_attn": [[0, 16], [32, 48]]}}),
    ],
    ids=["BERT", "GPT-2"],
)
def test_transformers_own_gradient_checkpointing_gives_the_same_gradient(network, settings, reentrant):
    base, gradients = network(), []
    for checkpointed in (False, True):
        model = copy.deepcopy(base).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        adapter = attach(model, GPartConfig(d=9, dropout=0.4, **settings))
        with torch.no_grad():
            adapter.theta.copy_(torch.linspace(-2, 2, 9))
        torch.manual_seed(3)
        model(input_ids=torch.arange(10).view(2, 5)).last_hidden_state.pow(3).sum().backward()
        gradients.append(adapter.theta.grad)
    assert gradients[0].abs().min() > 0
    torch.testing.assert_close(gradients[0], gradients[1])
