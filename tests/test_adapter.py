"""The adapter object where theta is no number, and where merging is refused or broken off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpart import GPartAdapter, GPartConfig, GPartError, attach
from gpart.materialize import merging


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("call", ["merge", "merge_and_unload"])
def test_merging_what_is_not_finite_is_refused_and_leaves_the_model(value: float, call: str, same_bits: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    adapter = attach(model, GPartConfig(3, ["0"], modules_to_save=["1"]))
    with torch.no_grad():
        adapter.theta[1] = value
    before = {name: stored.clone() for name, stored in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(
        GPartError, match=r"'default' cannot be merged: 1 of the 3 numbers of .*theta are NaN or infinite"
    ):
        getattr(adapter, call)()
    assert not adapter.merged
    assert all(same_bits(stored, before[name]) for name, stored in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    with torch.no_grad():
        adapter.theta.fill_(1)
    adapter.merge()
    assert adapter.merged


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def three_layers() -> tuple[nn.Module, GPartAdapter]:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))).eval()
    adapter = attach(model, GPartConfig(3, ["0", "1", "2"]))
    with torch.no_grad():
        adapter.theta.copy_(torch.tensor([1.0, -1.0, 0.5]))
    return model, adapter


@pytest.mark.parametrize("call", ["merge", "merge_and_unload"])
@pytest.mark.parametrize("how", ["refused by torch", "Ctrl-C before a write", "Ctrl-C after a write"])
def test_merging_that_is_broken_off_leaves_the_base(
    call: str, how: str, same_bits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapter = three_layers()
    if how == "refused by torch":  # several of its entries are one place
        model[1]._parameters["weight"] = nn.Parameter(torch.ones(4, 1).expand(4, 4), requires_grad=False)
    before = {name: stored.clone() for name, stored in model.state_dict().items()}
    wanted = model(torch.eye(4)).detach()
    with monkeypatch.context() as patch:
        if how == "Ctrl-C before a write":
            real, calls = merging.summed, iter((False, True))
            patch.setattr(merging, "summed", lambda *given: interrupt() if next(calls) else real(*given))
        elif how == "Ctrl-C after a write":
            patch.setattr(adapter.weights.scope, "held", lambda: ended_by_interrupt())
        with pytest.raises(RuntimeError if how == "refused by torch" else KeyboardInterrupt):
            getattr(adapter, call)()
    assert not adapter.merged
    assert all(same_bits(stored, before[name]) for name, stored in model.state_dict().items())
    assert model(torch.eye(4)).equal(wanted)
    if how != "refused by torch":
        adapter.merge()
        assert not same_bits(model.state_dict()["0.weight"], before["0.weight"])
        adapter.unmerge()
        assert all(same_bits(stored, before[name]) for name, stored in model.state_dict().items())


class InOneMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = nn.Parameter(self.a.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + 2 * self.b(x)


@pytest.mark.parametrize("targets", [["a"], ["b"], ["a", "b"]])
@pytest.mark.parametrize("call", ["merge", "merge_and_unload"])
def test_two_parameters_in_one_memory_are_not_merged(targets: list[str], call: str) -> None:
    """Unmerged each layer reads W0 + its own P·theta; one memory cannot hold both."""
    model = InOneMemory().eval()
    adapter = attach(model, GPartConfig(3, targets))
    with torch.no_grad():
        adapter.theta.copy_(torch.tensor([1.0, -1.0, 0.5]))
    base = model.a._parameters["weight"].detach().clone()
    sums = [base + (adapter.delta(f"{name}.weight") if name in targets else 0) for name in "ab"]
    torch.testing.assert_close(model(torch.eye(4)), (sums[0] + 2 * sums[1]).T)
    with pytest.raises(GPartError, match=r"a\.weight and b\.weight are two parameters in one memory"):
        getattr(adapter, call)()
    assert not adapter.merged
    assert model.b._parameters["weight"].equal(base)
    model.b._parameters["weight"].data = base.clone()
    adapter.merge()
    torch.testing.assert_close(model(torch.eye(4)), (sums[0] + 2 * sums[1]).T)


def test_parameters_apart_in_one_storage_are_merged(same_bits: Any) -> None:
    """As recurrent layers on a GPU keep theirs, and as columns of one fused weight."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    for storage in (torch.randn(2, 4, 4), torch.randn(4, 8)):
        for layer, part in zip(model, storage if storage.dim() == 3 else storage.chunk(2, 1), strict=True):
            layer.weight = nn.Parameter(part)
        adapter = attach(model, GPartConfig(3, ["0", "1"]))
        with torch.no_grad():
            adapter.theta.copy_(torch.tensor([1.0, -1.0, 0.5]))
        before, wanted = storage.clone(), model(torch.eye(4)).detach()
        adapter.merge()
        torch.testing.assert_close(model(torch.eye(4)), wanted)
        adapter.unmerge()
        assert same_bits(storage, before)
        adapter.detach()


def test_what_was_made_in_inference_mode_is_merged_and_unmerged(same_bits: Any) -> None:
    model, adapter = three_layers()
    with torch.inference_mode():
        model[1]._parameters["weight"] = nn.Parameter(torch.ones(4, 4), requires_grad=False)
    wanted = model(torch.eye(4)).detach()
    adapter.merge()
    assert model(torch.eye(4)).equal(wanted)
    adapter.unmerge()
    assert same_bits(model[1]._parameters["weight"], torch.ones(4, 4))


@contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """All weights are written when it comes."""
    yield
    raise KeyboardInterrupt


@pytest.mark.parametrize("merged", [False, True])
def test_unloading_that_is_refused_leaves_the_adapter(merged: bool, same_bits: Any) -> None:
    """Something else has made the last layer one of its own class."""
    model, adapter = three_layers()
    before = {name: stored.clone() for name, stored in model.state_dict().items() if "gpart" not in name}
    wanted = model(torch.eye(4)).detach()
    if merged:
        adapter.merge()
    own = type(model[2])
    model[2].__class__ = type("Another", (own,), {})
    with pytest.raises(GPartError, match="2 cannot be restored"):
        adapter.merge_and_unload()
    assert adapter.merged is merged
    assert model(torch.eye(4)).equal(wanted)
    adapter.unmerge()
    assert all(same_bits(model.state_dict()[name], stored) for name, stored in before.items())
    model[2].__class__ = own
    assert adapter.merge_and_unload()(torch.eye(4)).equal(wanted)
    assert type(model[0]) is nn.Linear


def test_a_head_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    adapter = attach(model, GPartConfig(3, ["0"], modules_to_save=["1"]))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(GPartError, match=r"1 of the 8 numbers of 1\.weight are NaN or infinite"):
        adapter.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
