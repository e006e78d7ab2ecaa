"""Values that change without a write that torch counts: other ``.data`` is seen between two passes of an evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from gpart import GPartConfig, attach

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


CHANGES = [(what, change) for what in ("theta", "W0") for change in (by_vector, by_data, by_copy)]


# Theta's old memory is held, so that no other theta gets it; W0's is not, which would hold what offloading lets go.
@pytest.mark.parametrize(("what", "change"), [*CHANGES, ("theta", twice)])
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
