"""What a method trains beside the head, as one vector."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpart import GPartConfig, attach
from gpart.errors import GPartError
from gpart.studies.trained_vector import trained_vector


def tied() -> nn.Module:
    """Two layers with one weight, and a head."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    net[1].weight = net[0].weight
    return net


def test_each_trained_number_is_in_it_once_in_the_models_order_without_the_head() -> None:
    net = tied()
    net[1].bias.requires_grad_(False)
    vector = trained_vector(net, head=["2.weight", "2.bias"])
    assert list(vector.parameters) == ["0.weight", "0.bias"]
    assert torch.equal(vector.read(), torch.cat([net[0].weight.detach().ravel(), net[0].bias.detach()]))


def test_a_shared_parameter_of_the_head_is_left_out_by_any_of_its_names() -> None:
    assert list(trained_vector(tied(), head=["1.weight"]).parameters) == ["0.bias", "1.bias", "2.weight", "2.bias"]


def test_what_is_written_is_what_the_network_has() -> None:
    net = tied()
    vector = trained_vector(net, head=["2.weight", "2.bias"])
    held, head, numbers = net[0].weight, net[2].weight.clone(), torch.arange(15.0)
    vector.write(numbers)
    assert net[0].weight is held
    assert torch.equal(held, numbers[:9].view(3, 3))
    assert torch.equal(net[1].bias, numbers[12:])
    assert torch.equal(net[2].weight, head)
    assert held.grad_fn is None


def test_what_is_read_is_a_copy() -> None:
    net = nn.Linear(2, 1)
    vector = trained_vector(net)
    before = vector.read()
    vector.write(before + 1)
    assert torch.equal(vector.read(), before + 1)


def test_gparts_is_theta_and_the_model_follows_what_is_written() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(3, 4)
    adapter = attach(net, GPartConfig(d=5, target_modules=["0"], modules_to_save=["1"]))
    vector = trained_vector(net, head=["1.weight", "1.bias"])
    assert [value is adapter.theta for value in vector.parameters.values()] == [True]
    with torch.no_grad():
        before = net(x)
        vector.write(torch.ones(5))
        assert not torch.equal(net(x), before)
        vector.write(torch.zeros(5))
        assert torch.equal(net(x), before)


def test_another_length_is_refused_before_anything_is_written() -> None:
    net = nn.Linear(2, 1)
    before = net.weight.clone()
    with pytest.raises(GPartError, match=r"\[4\] for 3 trained"):
        trained_vector(net).write(torch.ones(4))
    assert torch.equal(net.weight, before)


def test_a_network_of_which_only_the_head_is_trained_has_none() -> None:
    with pytest.raises(GPartError, match="beside its head"):
        trained_vector(nn.Linear(2, 1), head=["weight", "bias"])
