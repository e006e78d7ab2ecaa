"""The sums over groups: one buffer for a whole backward pass, and the same bits whatever the number of threads."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpart import GPartAdapter, GPartConfig, Partition, attach
from gpart.ops.block import Block
from gpart.ops.sums import GroupSums

CPU = torch.device("cpu")


def exact(values: Tensor, groups: Tensor, d: int) -> Tensor:
    return torch.zeros(d, dtype=torch.float64).scatter_add_(0, groups.long(), values.double())


# Several chunks, a last one that no number of lanes divides, and d on either side of each number of lanes.
@pytest.mark.parametrize("d", [1, 7, 23_040, 65_536, 65_537, 131_073, 300_000])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 6, 1001, (1 << 18) + 3, (1 << 19) + 1])
def test_sums_are_those_of_every_entry_once(d: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(d, (count,), generator=generator, dtype=torch.int32)
    values = torch.randint(-1000, 1000, (count,), generator=generator).float()  # float64 sums of these are exact
    sums = GroupSums(d, CPU)
    for _ in range(2):
        sums.add(values, (Block(groups, 0, 0, count),))
    assert torch.equal(sums.total(torch.float64), 2 * exact(values, groups, d))


def test_a_gradient_of_half_width_is_summed_without_loss() -> None:
    groups = torch.zeros(100_000, dtype=torch.int32)
    sums = GroupSums(1, CPU)
    sums.add(torch.full((100_000,), 0.1, dtype=torch.bfloat16), (Block(groups, 0, 0, 100_000),))
    assert sums.total(torch.float32).item() == pytest.approx(100_000 * torch.tensor(0.1).bfloat16().item(), rel=1e-7)


@pytest.mark.parametrize("d", [97, 4096, 4608, 100_000])  # below and above where float32 takes part
def test_long_sums_of_one_sign_are_right_to_the_last_places(d: int) -> None:
    """At d = 97 a group has 72,000 terms."""
    count = 7_000_000
    groups = Partition(count, d).groups()
    values = torch.rand(count, generator=torch.Generator().manual_seed(0)) + 0.5
    sums = GroupSums(d, CPU)
    sums.add(values, (Block(groups, 0, 0, count),))
    wanted = exact(values, groups, d)
    assert ((sums.total(torch.float64) - wanted) / wanted).abs().max() < 1e-6
    assert sums.total(torch.float32).dtype == torch.float32


def test_long_theta_needs_one_vector_of_its_length() -> None:
    d = 300_000
    sums = GroupSums(d, CPU)
    sums.add(torch.ones(d), (Block(torch.arange(d, dtype=torch.int32), 0, 0, d),))
    assert sums.total(torch.float32).equal(torch.ones(d))
    assert sums._wide is None


def test_the_number_of_threads_changes_no_bit() -> None:
    before, n = torch.get_num_threads(), 1_000_003
    values, groups = torch.randn(n, generator=torch.Generator().manual_seed(0)), Partition(n, 4608).groups()
    found = set()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            sums = GroupSums(4608, CPU)
            sums.add(values, (Block(groups, 0, 0, n),))
            found.add(sums.total(torch.float64).numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


class Stack(nn.Module):
    """Layers of one width; ``layers`` are run in their order, and again in ``again``."""

    def __init__(self, count: int, again: tuple[int, ...] = (), reentrant: bool | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(count)])
        self.again, self.reentrant = again, reentrant

    def forward(self, x: Tensor) -> Tensor:
        for number in [*range(len(self.layers)), *self.again]:
            layer = self.layers[number]
            x = layer(x) if self.reentrant is None else checkpoint(layer, x, use_reentrant=self.reentrant)
            x = torch.tanh(x)
        return x


def adapted(model: Stack, d: int = 5) -> tuple[Stack, GPartAdapter]:
    adapter = attach(model, GPartConfig(d=d, target_modules=r"layers\.\d+"))
    with torch.no_grad():
        adapter.theta.copy_(torch.linspace(-1, 1, d))
    return model, adapter


def dense_gradient(model: Stack, adapter: GPartAdapter, x: Tensor) -> Tensor:
    """Pᵀ·g from the gradients of plain weights, in float64."""
    plain = Stack(len(model.layers), model.again).double()
    with torch.no_grad():
        for number, layer in enumerate(plain.layers):
            layer.weight.copy_(model.layers[number].weight)
    plain(x.double()).square().sum().backward()
    flat = torch.cat([layer.weight.grad.flatten() for layer in plain.layers])
    partition = Partition(adapter.size, adapter.config.d, adapter.config.seed)
    return exact(flat, partition.groups(), adapter.config.d) / partition.sizes().double().sqrt()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[GroupSums]:
    """Every buffer that is made."""
    seen: list[GroupSums] = []
    real = GroupSums.__init__

    def init(self: GroupSums, d: int, device: torch.device) -> None:
        seen.append(self)
        real(self, d, device)

    monkeypatch.setattr(GroupSums, "__init__", init)
    return seen


@pytest.mark.parametrize("again", [(), (0,), (1, 1)])
def test_one_backward_pass_has_one_buffer(made: list[GroupSums], again: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, adapter = adapted(Stack(4, again))
    x = torch.randn(3, 8)
    model(x).square().sum().backward()
    assert len(made) == 1
    assert adapter.theta.grad is not None
    torch.testing.assert_close(adapter.theta.grad.double(), dense_gradient(model, adapter, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_give_the_same_gradient(made: list[GroupSums], reentrant: bool) -> None:
    torch.manual_seed(0)
    model, adapter = adapted(Stack(4, (2,), reentrant))
    x = torch.randn(3, 8, requires_grad=True)
    model(x).square().sum().backward()
    # A re-entrant region is a backward pass of its own.
    assert len(made) == (5 if reentrant else 1)
    assert adapter.theta.grad is not None
    torch.testing.assert_close(
        adapter.theta.grad.double(), dense_gradient(model, adapter, x.detach()), rtol=1e-5, atol=1e-5
    )


def test_the_same_graph_gone_through_twice_gives_the_gradient_twice() -> None:
    torch.manual_seed(0)
    model, adapter = adapted(Stack(3))
    loss = model(torch.randn(3, 8)).square().sum()
    (first,) = torch.autograd.grad(loss, adapter.theta, retain_graph=True)
    (second,) = torch.autograd.grad(loss, adapter.theta)
    assert torch.equal(first, second)


def test_two_losses_of_one_forward_pass_share_no_sums() -> None:
    torch.manual_seed(0)
    model, adapter = adapted(Stack(3))
    halfway: list[Tensor] = []
    model.layers[0].register_forward_hook(lambda module, args, output: halfway.append(output))
    end = model(torch.randn(3, 8)).sum()
    early = halfway[0].square().sum()
    parts = [torch.autograd.grad(loss, adapter.theta, retain_graph=True)[0] for loss in (early, end)]
    (whole,) = torch.autograd.grad(early + end, adapter.theta)
    torch.testing.assert_close(whole, parts[0] + parts[1])
    assert not torch.equal(parts[0], whole)


def test_a_backward_pass_that_is_broken_off_leaves_nothing_in_the_next_one() -> None:
    torch.manual_seed(0)
    model, adapter = adapted(Stack(3))
    broken = [True]

    def fail(grad: Tensor) -> None:
        if broken:
            broken.clear()
            raise RuntimeError("no room")

    halfway: list[Tensor] = []
    model.layers[0].register_forward_hook(lambda module, args, output: halfway.append(output))
    loss = model(torch.randn(3, 8)).square().sum()
    (wanted,) = torch.autograd.grad(loss, adapter.theta, retain_graph=True)
    halfway[0].register_hook(fail)
    with pytest.raises(RuntimeError, match="no room"):
        torch.autograd.grad(loss, adapter.theta, retain_graph=True)
    (found,) = torch.autograd.grad(loss, adapter.theta)
    assert torch.equal(found, wanted)


def test_the_gradient_has_a_gradient() -> None:
    """By finite differences of the gradient in float64; two weights, so that there is something to collect."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        model, adapter = adapted(Stack(2))
        x = torch.randn(3, 8)

        def gradient(create_graph: bool) -> Tensor:
            loss = model(x).square().sum()
            return torch.autograd.grad(loss, adapter.theta, create_graph=create_graph)[0]

        direction = torch.randn(5)
        (found,) = torch.autograd.grad(gradient(create_graph=True) @ direction, adapter.theta)
        step, theta = 1e-6, adapter.theta.detach().clone()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                adapter.theta.copy_(theta + sign * step * direction)
            ends.append(gradient(create_graph=False))
        torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


def test_nothing_of_a_backward_pass_stays(made: list[GroupSums]) -> None:
    torch.manual_seed(0)
    model, _ = adapted(Stack(3))
    model(torch.randn(3, 8)).square().sum().backward()
    (buffer,) = map(weakref.ref, made)
    made.clear()
    gc.collect()
    assert buffer() is None
