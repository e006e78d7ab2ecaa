"""torch.compile: one graph without a break, the same numbers, and what changes afterwards is seen."""

from __future__ import annotations

import shutil

import pytest
import torch
from releases import needs_compiler
from torch import nn

from gpart import GPartConfig, attach

pytestmark = needs_compiler

TEXTS = torch.arange(12).view(2, 6)


class Network(nn.Module):
    """A tied embedding, a layer of which two blocks are adapted, one that is run twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.fused = nn.Linear(8, 12)
        self.twice = nn.Linear(12, 12)
        self.back = nn.Linear(12, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = torch.tanh(self.fused(self.embed(ids)))
        return self.head(self.back(self.twice(torch.tanh(self.twice(x)))))


CONFIG = {"d": 13, "target_modules": ["embed", "fused", "twice", "back"], "slices": {"fused": [[0, 4], [8, 12]]}}


def steps(compiled, backend="aot_eager", dtype=torch.float32, seed=0, **settings):
    """Losses and gradients of three steps, then an output without gradient."""
    model = Network().to(dtype)
    adapter = attach(model, GPartConfig(**CONFIG, seed=seed), **settings)
    with torch.no_grad():
        adapter.theta.copy_(torch.linspace(-1, 1, 13))
    run = torch.compile(model, fullgraph=True, backend=backend) if compiled else model
    results = []
    for _ in range(3):
        adapter.theta.grad = None
        loss = nn.functional.cross_entropy(run(TEXTS).flatten(0, 1).float(), TEXTS.flatten())
        loss.backward()
        results += [loss.detach(), adapter.theta.grad]
        with torch.no_grad():
            adapter.theta.sub_(adapter.theta.grad)
    assert adapter.theta.grad.norm() > 0.01
    with torch.no_grad():
        results.append(run(TEXTS))
    return results


@pytest.mark.parametrize(("indices", "seed"), [("stored", 0), ("computed", 1), ("computed", (1 << 64) - 1)])
def test_a_compiled_model_is_one_graph_with_the_same_numbers(indices, seed):
    torch._dynamo.reset()
    for found, wanted in zip(
        steps(True, indices=indices, seed=seed), steps(False, indices=indices, seed=seed), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_sum_is_rounded_once_in_a_compiled_model_too():
    torch._dynamo.reset()
    wanted = steps(False, dtype=torch.bfloat16)
    found = steps(True, dtype=torch.bfloat16)
    assert found[0].equal(wanted[0])
    torch.testing.assert_close(found[1], wanted[1])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.slow  # it compiles C++ of its own, and what is below compiles too
def test_the_compilers_own_code_gives_the_same_numbers():
    torch._dynamo.reset()
    for found, wanted in zip(steps(True, "inductor"), steps(False), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_compiled_models_gradient_goes_through_the_mask_of_its_forward_pass():
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(64, 64, bias=False)).train()
    adapter = attach(model, GPartConfig(d=1, target_modules=["0"], dropout=0.25))
    with torch.no_grad():
        adapter.theta.fill_(64.0)  # P·theta is 1 everywhere
    base = adapter.base_parameters()["0.weight"].detach()
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    masks = []
    for _ in range(2):
        adapter.theta.grad = None
        update = run(torch.eye(64)).T - base
        kept = update.detach() > 0.5
        torch.testing.assert_close(update.detach(), kept * (4 / 3), rtol=1e-5, atol=1e-5)
        update.sum().backward()
        torch.testing.assert_close(adapter.theta.grad, kept.sum().float()[None] * (4 / 3) / 64)
        masks.append(kept)
    assert 0.7 < masks[0].float().mean() < 0.8
    assert not masks[0].equal(masks[1])
    assert run.eval()(torch.eye(64)).T.sub(base).round(decimals=4).eq(1).all()


def test_what_is_switched_after_compiling_is_seen():
    torch._dynamo.reset()
    model = Network()
    plain = model(TEXTS)
    adapter = attach(model, GPartConfig(**CONFIG))
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(run(TEXTS), plain)
        adapter.theta.fill_(1)
        adapted = run(TEXTS)
        assert (adapted - plain).abs().max() > 0.01
        with adapter.disabled():
            torch.testing.assert_close(run(TEXTS), plain)
        adapter.merge()
        torch.testing.assert_close(run(TEXTS), adapted)
        adapter.unmerge()
        torch.testing.assert_close(run(TEXTS), adapted)
