"""The adapter object where theta is no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpart import GPartConfig, GPartError, attach


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


def test_a_head_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    adapter = attach(model, GPartConfig(3, ["0"], modules_to_save=["1"]))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(GPartError, match=r"1 of the 8 numbers of 1\.weight are NaN or infinite"):
        adapter.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
