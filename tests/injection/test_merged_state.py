"""The state of a merged model is a plain model's: theta is in the weights, and no reader adds it once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gpart import GPartConfig, attach

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))


class Tied(nn.Module):
    """Two owners of one weight, and a norm with buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(self.first(x)))


def stack() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(5, 6), nn.Tanh()), nn.Linear(6, 2))


@pytest.fixture(params=[(Tied, ["first"]), (stack, ["0.0"])], ids=["tied", "containers"])
def case(request: pytest.FixtureRequest) -> Any:
    build, targets = request.param

    def attached() -> Any:
        return attach(build().eval(), GPartConfig(d=4, target_modules=targets))

    adapter = attached()
    with torch.no_grad():
        adapter.theta.normal_()
    return build, attached, adapter


@torch.no_grad()
def test_it_is_a_plain_models_state_and_an_adapted_ones_new_base(case: Any) -> None:
    build, attached, adapter = case
    expected = adapter.model(X)
    adapter.merge()
    state = {key: value.clone() for key, value in adapter.model.state_dict().items()}
    assert list(state) == list(build().state_dict())
    plain = build().eval()
    plain.load_state_dict(state)
    assert torch.equal(plain(X), expected)
    adapter.model.load_state_dict(state)
    assert torch.equal(adapter.model(X), expected)
    other = attached()
    other.model.load_state_dict(state)
    assert torch.equal(other.model(X), expected)
    other.theta.normal_()
    with pytest.warns(UserWarning, match=rf"no {other.theta_name}: .* is not 0, stays"):
        other.model.load_state_dict(state)
    assert not torch.equal(other.model(X), expected)
    with other.disabled():
        assert torch.equal(other.model(X), expected)
    adapter.unmerge()
    assert list(adapter.model.state_dict()) == list(other.model.state_dict())
    assert torch.equal(adapter.model(X), expected)


@pytest.mark.parametrize("strict", [True, False])
@torch.no_grad()
def test_an_adapters_state_is_not_read_by_a_merged_model(strict: bool, case: Any) -> None:
    _, attached, adapter = case
    state, theta = {key: value.clone() for key, value in attached().model.state_dict().items()}, adapter.theta.clone()
    adapter.merge()
    with pytest.raises(
        RuntimeError, match=rf"{adapter.theta_name} is an adapter's, and adapter 'default' is merged here"
    ):
        adapter.model.load_state_dict(state, strict=strict)
    assert torch.equal(adapter.theta, theta)
