"""Optimizers that were made before the adapter, or from ``layer.weight``: they train theta in the frozen weights' place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import nn

from gpart.callbacks import GPartCallback, PeftCallback
from gpart.callbacks.optimizers import group_of, put_in_place
from gpart.errors import GPartError

D = 10


def _late(self: Any) -> Any:
    return torch.optim.AdamW(self.parameters(), lr=0.1)


def test_an_optimizer_kept_from_init_trains_what_a_late_one_does(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    class Early(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.kept = _late(self)

        def configure_optimizers(self) -> Any:
            return self.kept

    class Late(lit_class):
        configure_optimizers = _late

    states = []
    for cls in (Early, Late):
        module, callback = cls(), lit_gpart()
        before = module.net[0].weight.detach().clone()
        lit_trainer(callback).fit(module, lit_loader())
        assert callback.adapter.theta.count_nonzero() == D
        assert callback.adapter.base_parameters()["0.weight"].equal(before)
        states.append(dict(module.state_dict()))
    assert list(states[0]) == list(states[1])
    for key, value in states[0].items():
        assert value.equal(states[1][key]), key


def test_it_is_said_once_and_the_frozen_weights_are_gone(
    lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    class Early(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.listed = list(self.net.parameters())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.listed, lr=0.25, momentum=0.5)

    module, callback = Early(), lit_gpart()
    trainer = lit_trainer(callback)
    trainer.fit(module, lit_loader())
    (group,) = trainer.optimizers[0].param_groups
    held = {id(value) for value in group["params"]}
    assert held == {id(value) for value in module.parameters() if value.requires_grad}
    assert (group["lr"], group["momentum"]) == (0.25, 0.5)


def test_groups_from_layer_weights(lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    """As in nanoGPT: matrices with decay, vectors without; torch refuses what is no leaf."""

    class Groups(lit_class):
        def configure_optimizers(self) -> Any:
            linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
            matrices, vectors = [one.weight for one in linear], [one.bias for one in linear]
            groups = [{"params": matrices, "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0.0}]
            return torch.optim.AdamW(groups, lr=0.1)

    callback = lit_gpart()
    trainer = lit_trainer(callback)
    trainer.fit(module := Groups(), lit_loader())
    theta = callback.adapter.theta
    group = group_of(theta, trainer.optimizers)
    assert group is not None
    assert group["weight_decay"] == 0.5
    assert any(one is module.net[3].weight for one in group["params"])
    assert theta.count_nonzero() == D
    assert module.net[0].weight is not module.net[0]._parameters["weight"]  # W0 + P·theta again


def test_two_optimizers_theta_goes_where_most_of_its_weights_were() -> None:
    big, small, head, new = (nn.Parameter(torch.zeros(size)) for size in (50, 5, 3, 2))
    one = torch.optim.SGD([{"params": [small, head], "lr": 0.5}], lr=1)
    other = torch.optim.Adam([{"params": [big], "lr": 0.125}, {"params": [nn.Parameter(torch.zeros(1))]}], lr=2)
    with pytest.warns(UserWarning, match=r"stood in 2 optimizers, SGD, Adam: the Adam .* module="):
        said = put_in_place([one, other], {"theta": new}, [big, small], [big, small])
    assert said is not None
    assert "lr=0.125" in said
    assert "[0.125, 0.5]" in said
    assert [id(value) for value in one.param_groups[0]["params"]] == [id(head)]
    assert [id(value) for value in other.param_groups[0]["params"]] == [id(new)]
    assert put_in_place([one, other], {"theta": new}, [big, small], [big, small]) is None


def test_lbfgs_from_the_start_trains_theta(lit_class: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any) -> None:
    """It holds its group's list of parameters itself, so the list must stay the same."""

    class Early(lit_class):
        def __init__(self) -> None:
            super().__init__()
            self.kept = torch.optim.LBFGS(self.parameters(), lr=0.1)

        def configure_optimizers(self) -> Any:
            return self.kept

    callback = lit_gpart()
    lit_trainer(callback).fit(Early(), lit_loader())
    assert callback.adapter.theta.count_nonzero() == D


def test_a_vector_does_not_go_into_an_optimizer_of_matrices() -> None:
    weight, bias = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4))
    new = {"theta": nn.Parameter(torch.zeros(2))}
    muon, other = torch.optim.Muon([weight]), torch.optim.AdamW([bias])
    with pytest.raises(GPartError, match=r"Muon takes matrices only, and theta is of shape \[2\]"):
        put_in_place([muon], new, [weight], [weight])
    assert len(muon.param_groups[0]["params"]) == 1  # nothing was changed
    put_in_place([muon, other], new, [weight, bias], [weight])
    assert group_of(new["theta"], [other]) is not None
    matrix = {"lora_A": nn.Parameter(torch.zeros(1, 4))}
    muon = torch.optim.Muon([weight])
    put_in_place([muon], matrix, [weight], [weight])
    assert group_of(matrix["lora_A"], [muon]) is not None


def test_the_names_of_named_parameters_stay_in_step() -> None:
    net = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(net.named_parameters(), lr=1)
    put_in_place([optimizer], {"theta": nn.Parameter(torch.zeros(2))}, [net.weight], [net.weight])
    (group,) = optimizer.param_groups
    assert group["param_names"] == ["bias", "theta"]
    assert [tuple(value.shape) for value in group["params"]] == [(3,), (2,)]


class Plain(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


@pytest.mark.parametrize("how", ["GPart", "LoRA"])
def test_the_command_lines_own_optimizer_and_scheduler(how: str, lit_loader: Any) -> None:
    class Project(Plain):
        def train_dataloader(self) -> Any:
            return lit_loader()

    callback: Any = GPartCallback(d=D, target_modules=["0"], modules_to_save=["2"])
    if how == "LoRA":
        callback = PeftCallback("LORA", ["0"], ["2"], settings={"r": 2})
    flags = ["fit", "--optimizer", "AdamW", "--optimizer.lr", "0.25"]
    flags += ["--lr_scheduler", "ConstantLR", "--lr_scheduler.factor", "0.5"]
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    defaults = {"max_epochs": 1, "accelerator": "cpu", "callbacks": [callback], **quiet}
    made = LightningCLI(Project, args=flags, save_config_callback=None, trainer_defaults=defaults)
    trained = {name: value for name, value in made.model.named_parameters() if value.requires_grad}
    assert len(trained) == (3 if how == "GPart" else 4)
    for name, value in trained.items():
        group = group_of(value, made.trainer.optimizers)
        assert group is not None, name
        assert group["initial_lr"] == 0.25
        assert value.count_nonzero() == value.numel(), name
