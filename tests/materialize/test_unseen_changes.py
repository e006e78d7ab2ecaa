"""Values that change without a write that torch counts: other ``.data``, and other tensors in memory that was freed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from gpart import GPartConfig, attach, set_active

X = torch.arange(12.0).view(3, 4) / 12


def adapted(weights):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    return model, attach(model, GPartConfig(d=5, target_modules=["0", "2"]), weights=weights)


def by_vector(parameter, value):
    vector_to_parameters(value.flatten(), [parameter])


def by_data(parameter, value):
    parameter.data = value.clone()


def twice(parameter, value):
    """The second assignment may get the memory that the first has freed."""
    parameter.data = torch.zeros_like(value)
    parameter.data = value.clone()


def by_copy(parameter, value):
    with torch.no_grad():
        parameter.copy_(value)


def let_go(parameter, value):
    """As offloading does: the numbers are let go, and come back where they may."""
    parameter.data = torch.empty(0)
    parameter.data = value.clone()


CHANGES = [(what, change) for what in ("theta", "W0") for change in (by_vector, by_data, by_copy, twice)]


@pytest.mark.parametrize(("what", "change"), [*CHANGES, ("W0", let_go)])
@pytest.mark.parametrize("weights", ["kept", "forward", "recomputed"])
def test_within_one_evaluation(what, weights, change):
    model, adapter = adapted(weights)
    parameter = adapter.theta if what == "theta" else model[0]._parameters["weight"]
    before = parameters_to_vector([parameter]).detach().view_as(parameter)
    found = []
    with adapter.cached(), torch.no_grad():
        for step in (0.0, 1.0, -1.0, 0.5):
            change(parameter, before + step)
            found.append(model(X))
    for step, value in zip((0.0, 1.0, -1.0, 0.5), found, strict=True):
        other, other_adapter = adapted(weights)
        with torch.no_grad():
            (other_adapter.theta if what == "theta" else other[0]._parameters["weight"]).copy_(before + step)
            assert value.equal(other(X))


@pytest.mark.parametrize("weights", ["kept", "forward", "recomputed"])
def test_a_cast_there_and_back_is_seen(weights):
    model, adapter = adapted(weights)
    with torch.no_grad(), adapter.cached():
        model(X)
        model.to(torch.bfloat16)
        model.to(torch.float32)
        found = model(X)
    other, _ = adapted(weights)
    other.to(torch.bfloat16).to(torch.float32)
    with torch.no_grad():
        assert found.equal(other(X))


def by_functional_call(model, value):
    return functional_call(model, {"0.weight": value.clone()}, (torch.eye(N),))


def by_data_twice(model, value):
    twice(model[0]._parameters["weight"], value)
    return model(torch.eye(N))


def by_letting_go(model, value):
    let_go(model[0]._parameters["weight"], value)
    return model(torch.eye(N))


N = 300  # a tensor of this size gets the memory of the one that was freed last


@pytest.mark.parametrize("change", [by_functional_call, by_data_twice, by_letting_go])
@pytest.mark.parametrize("weights", ["kept", "forward", "recomputed"])
def test_a_new_base_in_freed_memory_is_seen(weights, change):
    model = nn.Sequential(nn.Linear(N, N, bias=False))
    attach(model, GPartConfig(d=5, target_modules=["0"]), weights=weights)
    with torch.no_grad():
        for step in range(10):
            assert change(model, torch.full((N, N), float(step))).eq(step).all()


class Hyper(nn.Module):
    """Runs one layer on several bases in one pass."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(N, N, bias=False)

    def forward(self, bases):
        return [functional_call(self.layer, {"weight": base.clone()}, (torch.eye(N),)) for base in bases]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("weights", ["kept", "forward", "recomputed"])
def test_a_new_base_in_freed_memory_is_seen_within_one_pass(weights, grad):
    model = Hyper()
    attach(model, GPartConfig(d=5, target_modules=["layer"]), weights=weights)
    with torch.set_grad_enabled(grad):
        for step, value in enumerate(model([torch.full((N, N), float(step)) for step in range(10)])):
            assert value.eq(step).all()


@pytest.mark.parametrize("change", [by_data, twice, let_go])
def test_of_several_adapters_too(change):
    model, adapter = adapted("auto")
    attach(model, GPartConfig(d=5, target_modules=["0", "2"], seed=1), name="other")
    set_active(model, ["default", "other"])
    parameter = model[0]._parameters["weight"]
    before = parameter.detach().clone()
    with adapter.cached(), torch.no_grad():
        for step in (0.0, 1.0, -1.0, 0.5):
            change(parameter, before + step)
            assert model[0].weight.equal(before + step)
            assert model(X).isfinite().all()
        # What is kept belongs to this model's tensors.
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert copied(X).equal(model(X))


def test_a_base_that_was_transposed_in_place_is_seen():
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    attach(model, GPartConfig(d=5, target_modules=["0"]), weights="kept")
    with torch.no_grad():
        before = model(torch.eye(4))
        model[0]._parameters["weight"].data = model[0]._parameters["weight"].data.T
        assert model(torch.eye(4)).equal(before.T)
