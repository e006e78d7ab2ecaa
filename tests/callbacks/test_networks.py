"""Which network is adapted where several could be meant."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from transformers.pytorch_utils import Conv1D

from gpart import GPartConfig, GPartError, attach, load_adapter
from gpart.callbacks import GPartCallback
from gpart.callbacks.baselines import BitFit, LinearProbe
from gpart.callbacks.networks import find_network

CONFIG = GPartConfig(d=5, target_modules=["a"])


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.a(x).relu())


class Lit(LightningModule):
    def __init__(self, **networks: nn.Module) -> None:
        super().__init__()
        for name, network in networks.items():
            self.add_module(name, network)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        networks = [child for child in self.children() if isinstance(child, Net)]
        return nn.functional.cross_entropy(sum(net(batch[0]) for net in networks), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([value for value in self.parameters() if value.requires_grad], lr=0.1)


def adapted(seed: int = 0) -> Net:
    net = Net(seed)
    attach(net, CONFIG)
    return net


def callback(**more: Any) -> GPartCallback:
    return GPartCallback(**{"d": 5, "target_modules": ["a"], **more})


@pytest.mark.parametrize("order", [["teacher", "student"], ["student", "teacher"]])
def test_a_distilled_students_teacher_is_never_taken_for_it(
    order: list[str], lit_trainer: Any, lit_loader: Any, state_of: Any
) -> None:
    networks = {"teacher": adapted(1), "student": Net(2)}
    module = Lit(**{name: networks[name] for name in order})
    state = state_of(module)
    with pytest.raises(ValueError, match=r"'teacher'.*'student' could be adapted.*module='teacher'.*module='student'"):
        lit_trainer(callback()).fit(module, lit_loader())
    state.assert_kept()


def test_the_named_one_is_adapted_and_the_other_left_alone(lit_trainer: Any, lit_loader: Any) -> None:
    teacher, student = adapted(1).requires_grad_(requires_grad=False), Net(2)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    method = callback(module="student")
    lit_trainer(method).fit(Lit(teacher=teacher, student=student), lit_loader())
    assert method.adapter.model is student
    assert method.adapter.theta.count_nonzero() == 5
    assert all(value.equal(before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("module", [None, "student", ""])
@pytest.mark.parametrize("method", ["GPart", "LinearProbe", "BitFit"])
def test_a_network_that_the_project_has_frozen_is_not_changed_in_silence(
    method: str, module: str | None, lit_trainer: Any, lit_loader: Any, state_of: Any
) -> None:
    lit = Lit(teacher=Net(1).requires_grad_(False), student=Net(2))
    before, state = {key: value.clone() for key, value in lit.teacher.state_dict().items()}, state_of(lit)
    made: Any = {
        "GPart": lambda: callback(module=module, modules_to_save=["head"]),
        "LinearProbe": lambda: LinearProbe(modules_to_save=["head"], module=module),
        "BitFit": lambda: BitFit(module=module),
    }[method]()
    if method == "GPart" and module is None:
        with pytest.raises(GPartError, match=r"of \['student'\] and of \['teacher'\], which Lit has frozen: say mod"):
            lit_trainer(made).fit(lit, lit_loader())
        state.assert_kept()
        return
    lit_trainer(made).fit(lit, lit_loader())
    same = all(torch.equal(value, lit.teacher.state_dict()[key]) for key, value in before.items())
    asked_for = method == "GPart" and module == ""  # the others train nothing that the project has frozen
    assert same != asked_for


def test_a_frozen_backbone_beside_a_trained_head_is_adapted(lit_trainer: Any, lit_loader: Any) -> None:
    """All that is meant lies in what is frozen: nothing is ambiguous."""
    tail = nn.Sequential(nn.Linear(2, 2))
    lit = Lit(backbone=Net(1).requires_grad_(False), tail=tail)
    lit_trainer(made := callback(modules_to_save=["tail"])).fit(lit, lit_loader())
    assert made.adapter.theta.abs().max() > 0
    assert tail[0].weight.requires_grad


def test_a_head_of_a_frozen_network_is_not_trained_in_silence(lit_trainer: Any, lit_loader: Any) -> None:
    critic, student = Net(1).requires_grad_(False), nn.Sequential(OrderedDict(b=nn.Linear(8, 8), c=nn.Linear(8, 2)))
    lit = Lit(critic=critic, student=student)
    with pytest.raises(GPartError, match=r"of \['student'\] and of \['critic'\]"):
        lit_trainer(callback(target_modules=["b"], modules_to_save=["head"])).fit(lit, lit_loader())


class Weighted(Lit):
    """Learns how much each of two losses counts, as in Kendall et al. 2018."""

    def __init__(self, **networks: nn.Module) -> None:
        super().__init__(**networks)
        self.log_vars = nn.Parameter(torch.zeros(2))

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        return (super().training_step(batch, number) * torch.exp(-self.log_vars) + self.log_vars).sum()


@pytest.mark.parametrize("module", [None, "net", ""])
def test_a_frozen_parameter_of_the_lightning_module_itself_is_told(
    module: str | None, lit_trainer: Any, lit_loader: Any, recwarn: pytest.WarningsRecorder
) -> None:
    lit = Weighted(net=Net())
    for _ in range(2):  # it is told once
        lit_trainer(callback(module=module, name="default"), max_steps=2).fit(lit, lit_loader())
        assert bool(lit.log_vars.any()) == (module == "net")
    told = [str(one.message) for one in recwarn if "log_vars" in str(one.message)]
    assert [("module='net'" in one, "Weighted" in one) for one in told] == [(True, True)] * (module is None)


@pytest.mark.parametrize("saved", [None, ["probe"]])
@pytest.mark.parametrize("module", [None, "net", ""])
def test_a_head_beside_the_network_is_not_frozen_in_silence(
    module: str | None, saved: list[str] | None, lit_trainer: Any, lit_loader: Any, recwarn: pytest.WarningsRecorder
) -> None:
    lit = Lit(net=Net(), probe=nn.Linear(2, 2), other=nn.Linear(2, 2).requires_grad_(False), loss=nn.CrossEntropyLoss())
    made = callback(module=module, modules_to_save=["head"] if module == "net" else saved)
    lit_trainer(made, max_steps=1).fit(lit, lit_loader())
    assert lit.probe.weight.requires_grad == (module == "net" or saved == ["probe"])
    told = [str(one.message) for one in recwarn if "which were trained, are frozen" in str(one.message)]
    assert [one.startswith("['probe'] of Lit") and "module='net'" in one for one in told] == [True] * (
        module is None and saved != ["probe"]
    )


def test_two_adapted_networks_are_not_chosen_between(lit_trainer: Any, lit_loader: Any) -> None:
    module = Lit(first=adapted(1), second=adapted(2))
    with pytest.raises(ValueError, match=r"\['first', 'second'\].*module='first'.*module='second'"):
        lit_trainer(callback()).fit(module, lit_loader())


def test_what_was_attached_by_hand_is_gone_on_with_where_nothing_else_matches(
    lit_trainer: Any, lit_loader: Any
) -> None:
    """The usual project: a network, and beside it a loss or a probe of its own."""
    module = Lit(net=adapted(), probe=nn.Sequential(nn.Linear(3, 3)))
    method = callback()
    lit_trainer(method).fit(module, lit_loader())
    assert method.adapter.model is module.net
    assert method.adapter.theta.count_nonzero() == 5


def test_a_second_stage_on_a_loaded_first_one(tmp_path: Any, lit_trainer: Any, lit_loader: Any) -> None:
    first = adapted()
    next(iter(first.gpart.values())).adapter.save(tmp_path)
    second = Net()
    load_adapter(second, tmp_path)
    module = Lit(first=second, second=Net(3))
    with pytest.raises(ValueError, match="which network is meant"):
        lit_trainer(GPartCallback(d=5, target_modules="all-linear")).fit(module, lit_loader())


@pytest.mark.parametrize("line", [{"target_modules": "all-linear"}, {"target_parameters": ["wide"]}])
def test_a_network_of_other_layers_and_parameters_could_be_meant_too(
    line: dict[str, Any], lit_trainer: Any, lit_loader: Any
) -> None:
    class Other(nn.Module):
        """A layer of Transformers and a parameter that is no layer's weight, as the settings may name."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.wide = Conv1D(8, 8), nn.Parameter(torch.ones(8, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) @ self.wide

    first = Other()
    attach(first, GPartConfig(d=5, **line))
    with pytest.raises(ValueError, match=r"which network is meant.*'second' could be adapted"):
        lit_trainer(GPartCallback(d=5, **line)).fit(Lit(first=first, second=Other()), lit_loader())


def test_the_only_child_with_parameters_or_the_whole() -> None:
    net = Net()
    assert find_network(Lit(net=net, loss=nn.CrossEntropyLoss()), None) == ("net", net)
    two = Lit(net=net, other=Net())
    assert find_network(two, None) == ("", two)
    assert find_network(two, None, ["other"]) == ("net", net)
    with pytest.raises(ValueError, match=r"module='nett' is no submodule of Lit, which has \['net', 'other'\]"):
        find_network(two, "nett")
